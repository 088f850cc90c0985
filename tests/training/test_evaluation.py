"""Evaluation goes microbatch by microbatch."""

from __future__ import annotations

from functools import partial

import jax
import numpy as np
from flax import nnx

from nvfp4_jax import models
from nvfp4_jax.recipe import load_recipe
from nvfp4_jax.training.binding import precision_table
from nvfp4_jax.training.evaluation import make_evaluation
from nvfp4_jax.training.optimizer import adamw
from nvfp4_jax.training.state import abstract_model, initial_state
from nvfp4_jax.training.step import Program, loss_sum

from . import micro


def test_the_loss_of_a_batch_is_that_of_its_microbatches(tmp_path):
    config = models.HybridConfig(pattern="-", hidden=16, vocabulary=256, ffn=32)
    model = abstract_model(config)
    (tmp_path / "recipe.toml").write_text(micro.RECIPE.replace("blocks_1", "blocks_0"))
    recipe = load_recipe(str(tmp_path / "recipe.toml"))
    table = precision_table(recipe, model, config.num_blocks)
    program = Program(config, nnx.graphdef(model))
    parameters = initial_state(config, adamw(), 0).parameters
    random, shape = np.random.default_rng(0), (2, 2, 32)
    batch = {name: random.integers(0, 256, shape, np.int32) for name in ("tokens", "targets")}
    batch["segment_ids"] = np.zeros(shape, np.int32)
    batch["mask"] = random.random(shape) < 0.9
    key = jax.random.key(1)

    alone = jax.jit(partial(loss_sum, program, table))
    total, targets = jax.jit(make_evaluation(program, table))(parameters, batch, key)
    parts = [
        float(alone(parameters, {n: a[i] for n, a in batch.items()}, jax.random.fold_in(key, i)))
        for i in range(2)
    ]
    assert int(targets) == batch["mask"].sum()
    np.testing.assert_allclose(total, sum(parts), rtol=1e-6)

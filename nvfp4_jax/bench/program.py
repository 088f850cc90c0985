"""A training step under a recipe, compiled once however many benchmarks ask for it.

It is the step of `nvfp4 train`: loss, gradients, clipping, AdamW, the state given up for the new
one. Only the batch is made up, of random tokens.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from nvfp4_jax import models
from nvfp4_jax.precision import LinearPrecision
from nvfp4_jax.recipe import load_recipe
from nvfp4_jax.training.binding import Table, precision_table
from nvfp4_jax.training.model_choice import choose_model
from nvfp4_jax.training.optimizer import adamw, learning_rate_schedule
from nvfp4_jax.training.prepare import SCAN_FROM_BLOCKS
from nvfp4_jax.training.state import TrainState, abstract_model, initial_state
from nvfp4_jax.training.step import Program, make_step

Arrays = dict[str, jax.Array]


@dataclass(frozen=True)
class Workload:
    """What a step is of; the recipe is what varies.

    Attributes:
      model: a preset or a JSON file.
      batch, length: rows, and tokens a row.
      documents: of equal length, packed into each row.
      remat: as in training.
    """

    model: str
    batch: int
    length: int
    documents: int = 2
    remat: models.Remat = "none"

    @property
    def config(self) -> models.HybridConfig:
        """The model's shape."""
        return choose_model(self.model)

    def __str__(self) -> str:
        return f"{self.model}, {self.batch} x {self.length} tokens"


class Step(NamedTuple):
    """A compiled step, and what the compiler says of its memory, in bytes.

    Results live where arguments were given up for them; those that do not count as arguments.
    """

    recipe: str
    run: Callable[[TrainState, Arrays, jax.Array], Any]
    table: Table
    arguments: int
    temporary: int
    compile_seconds: float

    @property
    def total(self) -> int:
        """Arguments and temporaries."""
        return self.arguments + self.temporary

    @property
    def quantized(self) -> LinearPrecision:
        """The precision of the first layer that is not in bf16; bf16 if there is none."""
        return next((p for _, p in self.table if p.quantized), LinearPrecision())


def random_batch(work: Workload) -> Arrays:
    """One microbatch of random tokens."""
    shape = (1, work.batch, work.length)
    tokens = jax.random.randint(jax.random.key(1), shape, 0, work.config.vocabulary)
    segments = jnp.broadcast_to(jnp.arange(work.length) * work.documents // work.length + 1, shape)
    mask = jnp.ones(shape, bool)
    return {"tokens": tokens, "targets": tokens, "segment_ids": segments, "mask": mask}


def first_state(work: Workload) -> TrainState:
    """The state of a run before its first step.

    Its weights are drawn as for a run: products of zeros take less power, and so less time.
    """
    return jax.jit(lambda: initial_state(work.config, adamw(), 0))()


def check(work: Workload, recipes: tuple[str, ...]) -> None:
    """Raise what `compiled_step` would raise of these recipes, before any is compiled.

    Raises:
      UsageError: a model that does not exist.
      RecipeError: a recipe that cannot be read or does not fit the model.
    """
    for recipe in recipes:
        _table(work, recipe)


@cache
def compiled_step(work: Workload, recipe: str) -> Step:
    """The step of `work` under `recipe`; raises what `check` does."""
    config, table = work.config, _table(work, recipe)
    definition = nnx.graphdef(abstract_model(config))
    program = Program(config, definition, work.remat, scan=config.num_blocks >= SCAN_FROM_BLOCKS)
    step = make_step(program, table, adamw(), learning_rate_schedule(1e-3, 100, 10, 0.2))
    state = jax.eval_shape(lambda: initial_state(config, adamw(), 0))
    arguments, start = (state, random_batch(work), jax.random.key(0)), time.perf_counter()
    run = jax.jit(step, donate_argnums=0).lower(*arguments).compile()
    seconds = time.perf_counter() - start
    told = run.memory_analysis()
    assert told is not None  # CPUs and GPUs tell
    taken = told.argument_size_in_bytes + told.output_size_in_bytes - told.alias_size_in_bytes
    return Step(recipe, run, table, taken, told.temp_size_in_bytes, seconds)


def _table(work: Workload, recipe: str) -> Table:
    config = work.config
    return precision_table(load_recipe(recipe), abstract_model(config), config.num_blocks)

"""A training step in which MLPs hand amaxes on is the same step."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from nvfp4_jax import LinearPrecision, models
from nvfp4_jax.kernels import fused, relu_squared
from nvfp4_jax.training import exact
from nvfp4_jax.training.optimizer import adamw
from nvfp4_jax.training.state import abstract_model, initial_state
from nvfp4_jax.training.step import Program, make_gradients
from tests.sharding import standin
from tests.sharding.test_chained import QUIET

pytestmark = pytest.mark.usefixtures("quick_to_compile")

CONFIG = models.HybridConfig(
    pattern="----",
    hidden=16,
    vocabulary=32,
    ffn=32,
    attention_heads=2,
    kv_heads=1,
    head_dim=8,
    mamba_heads=2,
    mamba_head_dim=8,
    state=8,
    groups=1,
    chunk=8,
)


def gradients():
    """(loss, gradients) of two microbatches; blocks in a loop, linear inputs kept alone."""
    model = abstract_model(CONFIG)
    linears = [f"blocks_{i}/mlp/{name}" for i in range(4) for name in ("down", "up")]
    table = (*((path, QUIET) for path in linears), ("head", LinearPrecision()))
    program = Program(CONFIG, nnx.graphdef(model), remat="linear_inputs", scan=True)
    tokens = jax.random.randint(jax.random.key(1), (2, 2, 24), 0, CONFIG.vocabulary)
    batch = {"tokens": tokens, "targets": tokens, "mask": jnp.ones(tokens.shape, bool)}
    batch["segment_ids"] = jnp.ones(tokens.shape, jnp.int32)
    state = initial_state(CONFIG, adamw(), 0)
    run = jax.jit(make_gradients(program, table), compiler_options=exact.OPTIONS)
    return run(state.parameters, batch, jax.random.key(2))


def test_loss_and_gradients_have_the_same_bits(on_a_gpu, products_on_a_cpu, monkeypatch):
    calls = []
    monkeypatch.setattr(
        relu_squared, "relu_squared", lambda *a: calls.append(a[1]) or standin.relu_squared(*a)
    )
    chained = gradients()
    assert {dr is None for dr in calls} == {True, False}
    monkeypatch.setattr(fused, "relu_squared", None)
    count = len(calls)
    plain = gradients()
    assert len(calls) == count
    for a, b in zip(jax.tree.leaves(chained), jax.tree.leaves(plain), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))

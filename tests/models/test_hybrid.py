"""The model as a whole: packing, initialization, parameters, transformations."""

from __future__ import annotations

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from nvfp4_jax import models
from tests.models.small import build, run, tokens

pytestmark = pytest.mark.usefixtures("quick_to_compile")

SHAPES = {
    "hybrid": {},
    "rope and swiglu": {"positions": "rope", "mlp": "swiglu"},
    "two mixers a block": {"pattern": "*-*-", "mixers_per_block": 2, "positions": "rope"},
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("ids", [(5, 6, 9), (5, 6, 5)], ids=["new ids", "an id that comes back"])
def test_packed_documents_equal_documents_run_apart(shape, ids):
    """Rows of 3 + 10 + 6 tokens across chunks of 8: exact up to the order of FP32 sums.

    A softmax or a scan over a masked row adds exact zeros, so only the grouping of sums differs:
    sums of at most 24 terms, a few 2^-23 a layer; the logits are of order 10.
    """
    model, lengths = build(**SHAPES[shape]), (3, 10, 6)
    row = tokens(1, sum(lengths))
    segment_ids = jnp.asarray([np.repeat(ids, lengths)])
    packed = run(model, row, segment_ids)
    ends = np.cumsum((0, *lengths))
    for start, stop in itertools.pairwise(ends):
        apart = run(model, row[:, start:stop])
        np.testing.assert_allclose(packed[:, start:stop], apart, atol=1e-4)
    assert np.abs(packed - run(model, row)).max() > 1e-2


def test_no_token_sees_the_future():
    model, row = build(), tokens(2, 20)
    changed = row.at[:, 12].set((row[:, 12] + 1) % 11)
    before, after = run(model, row), run(model, changed)
    np.testing.assert_array_equal(before[:, :12], after[:, :12])
    assert (np.abs(before - after)[:, 12:].max(axis=(0, 2)) > 0).all()


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_dtypes(dtype):
    """FP32 logits, FP32 parameters, FP32 gradients, whatever is computed in."""
    model, row = build(dtype), tokens(2, 9)
    graph, state = nnx.split(model)
    assert run(model, row).dtype == jnp.float32
    assert model.embed(row).dtype == dtype
    gradients = jax.jit(jax.grad(lambda state: nnx.merge(graph, state)(row).sum()))(state)
    leaves = jax.tree.leaves(gradients) + jax.tree.leaves(state)
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype("float32")}
    assert all(np.isfinite(leaf).all() for leaf in leaves)


def test_bfloat16_is_near_float32():
    """Some thirty roundings of 2^-9 on the way to the logits, of random sign: below 2^-5."""
    row = tokens(2, 20)
    exact, rounded = (run(build(dtype), row) for dtype in (jnp.float32, jnp.bfloat16))
    assert np.linalg.norm(exact - rounded) < 2**-5 * np.linalg.norm(exact)


def test_float64_throughout():
    with jax.enable_x64(True):
        config = models.preset("tiny")
        graph = nnx.eval_shape(
            lambda: models.Hybrid(
                config, rngs=nnx.Rngs(0), dtype=jnp.float64, param_dtype=jnp.float64
            )
        )
        logits = nnx.eval_shape(lambda model: model(jnp.zeros((1, 40), jnp.int32)), graph)
    assert logits.dtype == jnp.float64


def test_names_of_parameters():
    paths = {"/".join(map(str, path)) for path, _ in nnx.to_flat_state(nnx.state(build()))}
    mamba = {"A_log", "D", "dt_bias", "conv/weight", "conv/bias", "norm/weight"}
    mamba |= {"in_proj/kernel", "out_proj/kernel"}
    expected = {f"blocks/0/mamba/{name}" for name in mamba}
    expected |= {f"blocks/1/attention/{name}/kernel" for name in "qkvo"}
    expected |= {"blocks/2/mlp/up/kernel", "blocks/2/mlp/down/kernel"}
    expected |= {"blocks/0/mamba_norm/weight", "blocks/1/attention_norm/weight"}
    expected |= {"blocks/2/mlp_norm/weight", "final_norm/weight"}
    assert paths == expected | {"embedding/weight", "head/kernel"}


def test_initial_values():
    """Samples of n normal values: the standard deviation is known to 1/sqrt(2 n), five of them."""
    config = models.preset("tiny")
    model = nnx.jit(lambda: models.Hybrid(config, rngs=nnx.Rngs(0)))()
    mamba, mlp = model.blocks[0].mamba, model.blocks[1].mlp
    attention = model.blocks[3].attention
    small = config.init_sigma / math.sqrt(config.num_blocks)
    for layer, sigma in (
        (mamba.in_proj, config.init_sigma),
        (mamba.out_proj, small),
        (mlp.up, config.init_sigma),
        (mlp.down, small),
        (attention.q, config.init_sigma),
        (attention.o, small),
        (model.head, config.init_sigma),
    ):
        kernel = np.asarray(layer.kernel[...])
        assert abs(kernel.std() / sigma - 1) < 5 / math.sqrt(2 * kernel.size)
    conv = np.asarray(mamba.conv.weight[...])
    assert np.abs(conv).max() <= 0.5
    assert np.abs(conv).max() > 0.45
    dt = np.asarray(jax.nn.softplus(mamba.dt_bias[...]))
    assert (dt >= 0.999e-3).all()
    assert (dt <= 1.001e-1).all()
    assert (np.exp(mamba.A_log[...]) >= 0.999).all()
    assert (np.exp(mamba.A_log[...]) <= 16.001).all()
    np.testing.assert_array_equal(mamba.D[...], np.ones(config.mamba_heads))


def test_dt_is_clamped_where_asked():
    row = tokens(1, 12)
    free, clamped = run(build(), row), run(build(dt_limit=(0.05, 0.06)), row)
    assert np.abs(free - clamped).max() > 1e-3

"""The same bits however the function is run: eager, jit, vmap, scan, typed or raw keys."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nvfp4_jax as nvfp4
from nvfp4_jax import Quantizer

from .compare import assert_bits
from .inputs import cast, tensors
from .test_codes import name

QUANTIZERS = [
    Quantizer("nvfp4", "16x16"),
    Quantizer("nvfp4", rht=16, rounding="stochastic"),
    Quantizer("mxfp8_e4m3"),
]
SHAPE = (3, 34, 20)


def assert_equal(one: nvfp4.BlockScaledArray, other: nvfp4.BlockScaledArray):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert_bits(np.asarray(a), np.asarray(b), "leaf")


def stack(arrays: list[nvfp4.BlockScaledArray]) -> nvfp4.BlockScaledArray:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *arrays)


@pytest.mark.parametrize("quantizer", QUANTIZERS, ids=name)
def test_eager_jit_vmap_and_scan_agree(quantizer):
    x = jnp.asarray(cast(tensors(quantizer.format, SHAPE)["heavy tails"], "bfloat16"))
    keys = jax.random.split(jax.random.key(5), SHAPE[0])

    def run(x, key):
        return nvfp4.quantize(x, quantizer, axis=0, key=key)

    eager = stack([run(x[i], keys[i]) for i in range(SHAPE[0])])
    assert_equal(stack([jax.jit(run)(x[i], keys[i]) for i in range(SHAPE[0])]), eager)
    assert_equal(jax.vmap(run)(x, keys), eager)
    assert_equal(jax.lax.scan(lambda _, xs: (None, run(*xs)), None, (x, keys))[1], eager)
    assert_equal(jax.jit(jax.vmap(jax.checkpoint(run)))(x, keys), eager)


def test_one_scale_for_the_tensor_one_for_each_example_under_vmap():
    x = jnp.asarray([[1.0] * 16, [1000.0] * 16])
    together = nvfp4.quantize(x, Quantizer())
    apart = jax.vmap(lambda row: nvfp4.quantize(row, Quantizer()))(x)
    assert np.asarray(together.tensor_scale).shape == ()
    assert np.asarray(apart.tensor_scale).shape == (2,)
    np.testing.assert_array_equal(apart.tensor_scale, x[:, 0] * np.float32(1 / 2688))


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("format", ["nvfp4", "fp8_e4m3"])
def test_square_blocks_of_a_weight_and_of_its_transpose(format, axis):
    """Fprop contracts one axis of the weight and Dgrad the other: both see the same values."""
    w = jnp.asarray(tensors(format, (150, 70))["rows apart"])
    quantizer = Quantizer(format, {"nvfp4": "16x16", "fp8_e4m3": "128x128"}[format])
    straight = nvfp4.quantize(w, quantizer, axis=axis)
    across = nvfp4.quantize(w, quantizer, axis=1 - axis)
    transposed = nvfp4.quantize(w.T, quantizer, axis=axis)
    for part in ("data", "block_scale"):
        expected = np.asarray(getattr(straight, part))
        assert_bits(np.asarray(getattr(across, part)), expected, part)
        assert_bits(np.asarray(getattr(transposed, part)).T, expected, part)


@pytest.mark.parametrize("rht", [0, 32])
def test_typed_and_raw_keys_are_one_key(rht):
    x = jax.random.normal(jax.random.key(0), (20, 48))
    quantizer = Quantizer(rounding="stochastic", rht=rht)
    typed = nvfp4.quantize(x, quantizer, key=jax.random.key(11))
    assert_equal(typed, nvfp4.quantize(x, quantizer, key=jax.random.PRNGKey(11)))
    with pytest.raises(AssertionError):
        assert_equal(typed, nvfp4.quantize(x, quantizer, key=jax.random.key(12)))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("quantizer", QUANTIZERS[1:], ids=name)
def test_a_producers_rounding_survives_inside_the_same_jit(quantizer, dtype):
    """XLA may hand on the float32 from before a cast; codes must come from after it."""
    x = jnp.asarray(tensors(quantizer.format, (34, 20))["normal"]) * 3.1

    def inside(x, key):
        return nvfp4.quantize((x * x).astype(dtype), quantizer, key=key)

    key = jax.random.key(2)
    outside = nvfp4.quantize((x * x).astype(dtype), quantizer, key=key)
    assert_equal(jax.jit(inside)(x, key), outside)


def test_a_quantized_array_is_a_pytree_that_keeps_its_quantizer():
    x = jnp.ones((4, 32))
    q = nvfp4.quantize(x, Quantizer(), axis=0)
    through = jax.jit(lambda q: q)(q)
    assert (through.quantizer, through.axis, through.shape) == (Quantizer(), -2, (4, 32))
    lifted = jax.vmap(lambda row: nvfp4.quantize(row, Quantizer()))(x)
    np.testing.assert_array_equal(jax.vmap(nvfp4.dequantize)(lifted), x)

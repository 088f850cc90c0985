"""A NaN or an infinity is never quietly dropped, though `jnp.max` on a CPU would."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

import nvfp4_jax as nvfp4
from nvfp4_jax import Quantizer

BAD = [np.nan, -np.nan, np.inf, -np.inf]


def with_one(bad: float, dtype) -> jnp.ndarray:
    x = np.random.default_rng(0).normal(size=(4, 256)).astype(np.float32)
    x[1, 70] = bad
    return jnp.asarray(x, dtype)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize(
    "quantizer",
    [
        Quantizer("nvfp4"),
        Quantizer("nvfp4", "16x16"),
        Quantizer("nvfp4", rht=16),
        Quantizer("fp8_e4m3", "tensor"),
        Quantizer("fp8_e5m2", "tensor"),
    ],
    ids=str,
)
def test_one_makes_the_whole_tensor_nan_where_it_has_a_scale(quantizer, bad, dtype):
    assert np.isnan(nvfp4.qdq(with_one(bad, dtype), quantizer)).all()


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize(
    ("quantizer", "block"),
    [
        (Quantizer("mxfp4"), 32),
        (Quantizer("mxfp8_e4m3"), 32),
        (Quantizer("mxfp8_e5m2", scale="floor"), 32),
        (Quantizer("fp8_e4m3"), 128),
        (Quantizer("fp8_e4m3", scale="power_of_two"), 128),
    ],
    ids=str,
)
def test_one_makes_its_block_nan_and_no_other(quantizer, block, bad):
    q = nvfp4.quantize(with_one(bad, jnp.float32), quantizer)
    values = np.isnan(np.asarray(nvfp4.dequantize(q)).reshape(4, -1, block))
    expected = np.zeros_like(values)
    expected[1, 70 // block] = True
    np.testing.assert_array_equal(values, expected)
    if quantizer.format.startswith("mx"):
        assert np.asarray(q.block_scale).view(np.uint8)[1, 70 // block] == 0xFF


@pytest.mark.parametrize(
    "quantizer", [Quantizer("nvfp4"), Quantizer("mxfp4"), Quantizer("fp8_e4m3")], ids=str
)
def test_zeros_stay_zeros(quantizer):
    assert not np.asarray(nvfp4.qdq(jnp.zeros((3, 64)), quantizer)).any()
    mixed = jnp.zeros((2, 256)).at[0, 0].set(1.0)
    assert not np.asarray(nvfp4.qdq(mixed, quantizer))[1].any()


def test_a_block_whose_scale_underflows_is_zero():
    """1e-7 of the tensor's maximum is below half of E4M3's smallest scale."""
    x = jnp.ones((2, 16)).at[1].set(1e-7)
    q = nvfp4.quantize(x, Quantizer("nvfp4"))
    assert np.asarray(q.block_scale).astype(np.float32)[1, 0] == 0
    assert not np.asarray(nvfp4.dequantize(q))[1].any()

"""Two codes a byte, the even one low; every pair of codes, and every length."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import nvfp4_jax as nvfp4

CODES = np.arange(16, dtype=np.uint8)


def as_float4(codes: np.ndarray) -> jax.Array:
    return jnp.asarray(codes.view(ml_dtypes.float4_e2m1fn))


def test_all_pairs_of_codes():
    pairs = np.array(list(itertools.product(CODES, CODES)), np.uint8)
    packed = jax.jit(nvfp4.pack)(as_float4(pairs))
    np.testing.assert_array_equal(packed[:, 0], pairs[:, 0] + 16 * pairs[:, 1])
    back = np.asarray(jax.jit(nvfp4.unpack)(packed))
    np.testing.assert_array_equal(back.view(np.uint8) & 15, pairs)


@pytest.mark.parametrize("shape", [(1,), (7,), (3, 5), (2, 3, 16), (4, 1)])
def test_round_trip_of_any_length(shape):
    codes = np.random.default_rng(0).integers(0, 16, shape).astype(np.uint8)
    packed = nvfp4.pack(as_float4(codes))
    assert packed.shape == (*shape[:-1], (shape[-1] + 1) // 2)
    back = np.asarray(nvfp4.unpack(packed, shape[-1]))
    np.testing.assert_array_equal(back.view(np.uint8) & 15, codes)


def test_a_quantized_tensor_survives():
    x = jax.random.normal(jax.random.key(0), (8, 32))
    q = nvfp4.quantize(x, nvfp4.Quantizer())
    np.testing.assert_array_equal(
        nvfp4.unpack(nvfp4.pack(q.data)).astype(jnp.float32), q.data.astype(jnp.float32)
    )


def test_what_is_no_code_or_byte_raises():
    with pytest.raises(TypeError, match=r"\.data of a quantized tensor"):
        nvfp4.pack(jnp.ones((4,), jnp.float32))
    with pytest.raises(TypeError, match="uint8"):
        nvfp4.unpack(jnp.ones((4,), jnp.int32))
    with pytest.raises(ValueError, match="hold 8 codes, or 7"):
        nvfp4.unpack(jnp.ones((4,), jnp.uint8), 6)

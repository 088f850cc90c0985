"""Back again: (code * block scale) * tensor scale, in this order, in float32."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nvfp4_jax as nvfp4
from nvfp4_jax import Quantizer
from tests.oracle import layout
from tests.oracle import quantize as oracle

from .compare import assert_bits, assert_codes, spec_of, words
from .inputs import tensors
from .test_codes import name

QUANTIZERS = [
    Quantizer("nvfp4"),
    Quantizer("nvfp4", "16x16"),
    Quantizer("nvfp4", rht=16, rounding="stochastic"),
    Quantizer("mxfp4"),
    Quantizer("mxfp8_e5m2", scale="floor"),
    Quantizer("fp8_e4m3", "128x128"),
    Quantizer("fp8_e4m3", "tensor"),
]
KINDS = ("normal", "heavy tails", "rows apart", "zeros", "zero blocks", "near overflow")


@pytest.mark.parametrize("quantizer", QUANTIZERS, ids=name)
def test_values_are_the_oracles(quantizer):
    shape, axis = (3, 18, 21), 1
    key = jax.random.key(3) if quantizer.needs_key else None
    dequantize = jax.jit(nvfp4.dequantize)
    for kind in KINDS:
        x = tensors(quantizer.format, shape)[kind]
        q = assert_codes(x, quantizer, axis, key)
        expected = oracle.quantize(x, spec_of(quantizer, key), axis, words(key)).dequantize()
        actual = layout.as_matrix(np.asarray(dequantize(q)), (axis,))
        assert_bits(actual, expected, kind)


def test_qdq_is_dequantize_of_quantize_with_one_rounding_to_the_dtype():
    x = jax.random.normal(jax.random.key(0), (40, 24))
    quantizer = Quantizer("nvfp4", rounding="stochastic")
    q = nvfp4.quantize(x, quantizer, axis=0, key=jax.random.key(1))
    values = nvfp4.dequantize(q)
    assert values.dtype == jnp.float32
    np.testing.assert_array_equal(nvfp4.qdq(x, quantizer, 0, jax.random.key(1)), values)
    half = nvfp4.dequantize(q, jnp.bfloat16)
    assert half.dtype == jnp.bfloat16
    np.testing.assert_array_equal(half, values.astype(jnp.bfloat16))


def test_shapes_and_dtypes_are_as_promised():
    x = jnp.ones((50, 40))

    def described(quantizer, axis):
        q = nvfp4.quantize(x, quantizer, axis=axis)
        parts = (q.data, q.block_scale, q.tensor_scale)
        return [None if part is None else (part.dtype, part.shape) for part in parts]

    e2m1, e4m3, fp32 = jnp.float4_e2m1fn, jnp.float8_e4m3fn, jnp.float32
    shape = (50, 40)
    tiles = [(e2m1, shape), (e4m3, (4, 3)), (fp32, ())]
    assert described(Quantizer("nvfp4", "16x16"), 0) == tiles
    assert described(Quantizer(), 0) == [(e2m1, shape), (e4m3, (4, 40)), (fp32, ())]
    assert described(Quantizer("mxfp4"), -1) == [
        (e2m1, shape),
        (jnp.float8_e8m0fnu, (50, 2)),
        None,
    ]
    assert described(Quantizer("fp8_e4m3", "128x128"), 1) == [(e4m3, shape), (fp32, (1, 1)), None]
    assert described(Quantizer("fp8_e4m3", "tensor"), 1) == [(e4m3, shape), None, (fp32, ())]
    rotated = nvfp4.quantize(x, Quantizer("fp8_e4m3", rht=16), axis=0)
    assert rotated.data.shape == (128, 40)
    assert nvfp4.quantize(x, Quantizer(rht=16), axis=0).data.shape == (64, 40)

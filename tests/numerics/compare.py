"""One question, asked many times: are the package's bits the oracle's bits?"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

import nvfp4_jax as nvfp4
from tests.oracle import layout
from tests.oracle import quantize as oracle
from tests.oracle.formats import Spec

SIGN_STREAM = 3  # folded into the key for the signs of a rotation


@functools.cache
def compiled(quantizer: nvfp4.Quantizer, axis: int):
    """`quantize` under jit; one function per quantizer and axis, compiled once per shape."""

    def run(x, key):
        return nvfp4.quantize(x, quantizer, axis=axis, key=key)

    return jax.jit(run)


def spec_of(quantizer: nvfp4.Quantizer, key=None) -> Spec:
    """The oracle's description of the same quantizer; random signs are drawn here, with JAX."""
    signs = None
    if quantizer.sign == "random":
        assert key is not None
        drawn = jax.random.rademacher(
            jax.random.fold_in(key, SIGN_STREAM), (quantizer.rht,), jnp.float32
        )
        signs = tuple(int(s) for s in np.asarray(drawn))
    return Spec(
        format=quantizer.format,
        granularity=quantizer.granularity,
        rounding=quantizer.rounding,
        bits=quantizer.bits,
        rht=quantizer.rht,
        scale=quantizer.scale,
        signs=signs,
    )


def words(key) -> np.ndarray | None:
    """The two 32-bit words of a key, typed or raw."""
    return None if key is None else np.asarray(jax.random.key_data(key)).reshape(-1)[:2]


def bits(array: np.ndarray) -> np.ndarray:
    """Raw bits with one kind of zero, and one of NaN."""
    raw = array.view({1: np.uint8, 2: np.uint16, 4: np.uint32}[array.dtype.itemsize])
    values = array.astype(np.float32)
    raw = np.where(np.isnan(values), raw.dtype.type(np.iinfo(raw.dtype).max), raw)
    return np.where(values == 0, raw.dtype.type(0), raw)


def codes_matrix(q: nvfp4.BlockScaledArray) -> np.ndarray:
    return layout.as_matrix(np.asarray(q.data), (q.axis % q.data.ndim,))


def scale_matrix(q: nvfp4.BlockScaledArray) -> np.ndarray | None:
    """The block scales as (rows, contraction).

    Square blocks of a tensor without just two axes have those of the matrix it was flattened to,
    which has the contraction first only if the tensor had.
    """
    if q.block_scale is None:
        return None
    scale, axis = np.asarray(q.block_scale), q.axis % q.data.ndim
    if scale.ndim != q.data.ndim:
        axis = 0 if axis == 0 and q.data.ndim > 1 else 1
    return layout.as_matrix(scale, (axis,))


def assert_codes(x: np.ndarray, quantizer: nvfp4.Quantizer, axis: int = -1, key=None, q=None):
    """Codes, block scales and the tensor's scale of `x` are bit for bit the oracle's.

    `q` is a result to judge; left out, `quantize` is run under jit. Where a NaN or an infinity
    has been, codes are unspecified, and what counts is that they dequantize to NaN.
    """
    q = compiled(quantizer, axis)(jnp.asarray(x), key) if q is None else q
    expected = oracle.quantize(np.asarray(x), spec_of(quantizer, key), axis, words(key))
    lost = np.isnan(expected.dequantize())
    assert_bits(codes_matrix(q), expected.codes, "codes", where=~lost)
    assert_optional_bits(q.tensor_scale, expected.tensor_scale, "tensor scale")
    if expected.tensor_scale is None or np.isfinite(expected.tensor_scale):
        assert_optional_bits(scale_matrix(q), expected.scale, "block scales")
    if lost.any():
        values = layout.as_matrix(np.asarray(nvfp4.dequantize(q)), (axis % x.ndim,))
        np.testing.assert_array_equal(np.isnan(values), lost, err_msg="NaN")
    return q


def assert_bits(actual, expected, what: str, where: np.ndarray | bool = True):
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape), what
    actual, expected = np.where(where, bits(actual), 0), np.where(where, bits(expected), 0)
    np.testing.assert_array_equal(actual, expected, err_msg=what)


def assert_optional_bits(actual, expected, what: str):
    assert (actual is None) == (expected is None), what
    if expected is not None:
        assert_bits(actual, expected, what)

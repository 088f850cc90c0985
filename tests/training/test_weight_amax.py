"""The largest magnitude of a weight is found once a step, and changes no bit."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nvfp4_jax as nvfp4
from nvfp4_jax.operands import amax_bits
from tests.gemm.precisions import PAPER, PRECISIONS

NUMBERS = (((1,), (0,)), ((), ()))


def products(precision, x, w, amax):
    def run(x, w):
        dot = nvfp4.make_dot_general(precision, jax.random.key(1), weight_amax=amax)
        y, pull = jax.vjp(lambda x, w: dot(x, w, NUMBERS), x, w)
        return (y, *pull(y))

    return jax.jit(run)(x, w)


@pytest.mark.parametrize("precision", [PAPER, PRECISIONS["rows"], PRECISIONS["mxfp4"]])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_a_known_amax_changes_no_bit(precision, dtype):
    keys = jax.random.split(jax.random.key(0))
    x = jax.random.normal(keys[0], (32, 48), dtype)
    w = jax.random.normal(keys[1], (48, 80), jnp.float32)
    found = products(precision, x, w, None)
    given = products(precision, x, w, amax_bits(w, dtype))
    for a, b in zip(found, given, strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


@pytest.mark.parametrize("value", [3e38, np.inf, np.nan, 0.0, 1.00390625])
def test_amax_bits_are_those_of_the_rounded_tensor(value):
    w = jnp.asarray([[0.5, -value], [0.0, 0.25]], jnp.float32)
    for dtype in (jnp.bfloat16, jnp.float32):
        rounded = np.abs(np.asarray(w.astype(dtype)).astype(np.float32))
        top = np.float32(np.nan) if np.isnan(rounded).any() else rounded.max()
        bits = np.asarray(amax_bits(w, dtype)).view(np.float32)
        np.testing.assert_array_equal(bits, top)

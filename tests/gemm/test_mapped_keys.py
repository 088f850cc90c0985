"""vmap over some of input, gradient and key: products that XLA's CPU backend has failed on."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nvfp4_jax as nvfp4

NUMBERS = (((1,), (0,)), ((), ()))
MAPPED = [(None, None, 0), (None, 0, None), (0, None, 0), (0, 0, 0)]


def backward(x, dy, key):
    precision = nvfp4.load_recipe("nvfp4").precision["nvfp4"]
    w = jnp.linspace(-1, 1, 32 * 24, dtype=jnp.float32).reshape(32, 24)
    dot_general = nvfp4.make_dot_general(precision, key)
    return jax.vjp(lambda x, w: dot_general(x, w, NUMBERS), x, w)[1](dy)


@pytest.mark.parametrize("axes", MAPPED, ids=str)
def test_each_example_is_as_if_alone(axes):
    """Codes are equal; sums of 48 products come in another order, or from FP32 operands."""
    keys = jax.random.split(jax.random.key(0), 3)
    x, dy = (jax.random.normal(jax.random.key(i), (3, 48, n)) for i, n in ((1, 32), (2, 24)))
    whole = [a if axis == 0 else a[0] for a, axis in zip((x, dy, keys), axes, strict=True)]
    together = jax.jit(jax.vmap(backward, axes))(*whole)
    alone = jax.jit(backward)
    for i in range(3):
        one = [a[i] if axis == 0 else a for a, axis in zip(whole, axes, strict=True)]
        for mapped, expected in zip(together, alone(*one), strict=True):
            difference = np.linalg.norm(mapped[i] - expected)
            assert difference <= 48 * 2**-24 * np.linalg.norm(expected)

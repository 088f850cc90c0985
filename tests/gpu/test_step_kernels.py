"""Convolution, norms and attention by their kernels, on a GPU, against plain XLA in FP32.

Inputs are bf16 and what is compared with is computed from the same values in FP32, so errors are
those of rounding results to bf16 (2^-9 each, 1.7e-3 in the mean square) and, in attention, of bf16
weights between its two products.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nvfp4_jax.models.attention import attend
from nvfp4_jax.models.conv import conv_silu
from nvfp4_jax.models.norm import rms_norm
from tests.models.small import gap

LENGTH = 1000  # no multiple of any tile
DOCUMENTS = np.cumsum(np.isin(np.arange(LENGTH), (1, 2, 130, 600)))[None].repeat(2, 0)


def normal(seed: int, *shape: int, dtype=jnp.bfloat16) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape, jnp.float32).astype(dtype)


def compare(function, arguments, cotangent, tolerance):
    """Values and gradients of function(implementation, *arguments)."""

    def run(implementation, arguments, cotangent):
        def both(arguments, cotangent):
            value, pull = jax.vjp(lambda *a: function(implementation, *a), *arguments)
            return value, pull(cotangent)

        return jax.tree.leaves(jax.jit(both)(arguments, cotangent))

    wide = jax.tree.map(lambda a: a.astype(jnp.float32), (arguments, cotangent))
    expected = run("xla", *wide)
    found = run("triton", arguments, cotangent)
    again = run("triton", arguments, cotangent)
    for one, other, wanted in zip(found, again, expected, strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))
        assert gap(one, wanted) < tolerance


@pytest.mark.parametrize("documents", [None, DOCUMENTS], ids=["whole", "packed"])
def test_convolution(documents):
    widths = (256, 128, 128)
    arguments = (
        normal(0, 2, LENGTH, 808),
        normal(1, 4, 512, dtype=jnp.float32),
        normal(2, 512, dtype=jnp.float32),
    )
    dy = tuple(normal(3 + i, 2, LENGTH, width) for i, width in enumerate(widths))
    ids = None if documents is None else jnp.asarray(documents, jnp.int32)

    def function(implementation, x, weight, bias):
        return conv_silu(
            x, weight, bias, ids, start=256, widths=widths, implementation=implementation
        )

    compare(function, arguments, dy, 2.5e-3)


@pytest.mark.parametrize(("channels", "groups"), [(768, 1), (2560, 8), (10_240, 8)])
@pytest.mark.parametrize("gated", [False, True])
def test_norm(channels, groups, gated):
    x, weight = normal(0, 300, channels), 1 + 0.2 * normal(1, channels, dtype=jnp.float32)
    gate = (normal(2, 300, channels + 24),) if gated else ()

    def function(implementation, x, weight, *gate):
        options = {"eps": 1e-5, "groups": groups, "implementation": implementation}
        return rms_norm(x, weight, gate=gate[0] if gate else None, **options)

    compare(function, (x, weight, *gate), normal(3, 300, channels), 2.5e-3)


@pytest.mark.parametrize("documents", [None, DOCUMENTS], ids=["whole", "packed"])
@pytest.mark.parametrize(("heads", "shared", "head_dim"), [(12, 4, 64), (10, 2, 128)])
def test_attention(documents, heads, shared, head_dim):
    q = normal(0, 2, LENGTH, heads, head_dim)
    k, v = (normal(i, 2, LENGTH, shared, head_dim) for i in (1, 2))
    ids = None if documents is None else jnp.asarray(documents, jnp.int32)

    def function(implementation, q, k, v):
        return attend(q, k, v, ids, implementation=implementation)

    compare(function, (q, k, v), normal(3, 2, LENGTH, heads, head_dim), 5e-3)

"""The random Hadamard transform (RHT): spread an outlier over its block before quantizing.

Sixteen neighbours times diag(sign) H / sqrt(16). H has only ±1, so the transform is sixteen
additions an element (or four, as a butterfly), and (diag(s) H)(diag(s) H)^T = 16 I: when both
operands of a GEMM are rotated along its contraction axis, the product does not change.

    signs, then butterfly stages over distances 1, 2, 4, ..., then times 1/sqrt(n), all in FP32.

The order is part of the definition: floating-point sums of sixteen numbers depend on it.
Source: arXiv 2509.25149, section 4.3 and appendix C; the fixed signs are Transformer Engine's.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32

from nvfp4_jax.materialize import store_on_cpu

FIXED_SIGNS = (1, 1, 1, -1, 1, -1, -1, -1, -1, -1, -1, 1, -1, 1, -1, -1)


def fixed_signs() -> Float32[Array, "16"]:
    """The sign vector defined for length 16."""
    return jnp.asarray(FIXED_SIGNS, jnp.float32)


def random_signs(key: Array, length: int) -> Float32[Array, "length"]:
    """`length` independent ±1 drawn from `key`."""
    return jax.random.rademacher(key, (length,), jnp.float32)


def rotate(
    x: Float32[Array, "..."], signs: Float32[Array, "n"], axis: int
) -> Float32[Array, "..."]:
    """x times diag(signs) H_n / sqrt(n), in groups of n along `axis`.

    Args:
      x: float32; its length along `axis` is a multiple of n.
      signs: n values ±1, n a power of two.
      axis: the contraction axis.

    Returns:
      The rotated array in float32, same shape.

    Raises:
      ValueError: the length is no multiple of n (pad with zeros first).
    """
    n, axis = signs.shape[0], axis % x.ndim
    if x.shape[axis] % n:
        raise ValueError(
            f"axis {axis} of shape {x.shape} is no multiple of {n}; pad it with zeros first"
        )
    before, after = x.shape[:axis], x.shape[axis + 1 :]
    groups = x.reshape(*before, x.shape[axis] // n, n, *after)
    groups = groups * _along(signs, axis + 1, groups.ndim)
    stages = n.bit_length() - 1
    for stage in range(0, stages, 2):
        groups = store_on_cpu(groups) if stage else groups
        groups = _two_stages(groups, 2**stage, axis + 1, last=stage + 1 == stages)
    return groups.reshape(x.shape) * np.float32(1 / np.sqrt(np.float32(n)))


def _two_stages(groups, distance, axis, last):
    """Butterflies over `distance` and, unless it is the last stage, twice that.

    Two at a time, since each pass over memory costs more than the additions.
    """
    before, after = groups.shape[:axis], groups.shape[axis + 1 :]
    radix = 2 if last else 4
    count = groups.shape[axis] // (radix * distance)
    parts = groups.reshape(*before, count, radix, distance, *after)
    v = [jax.lax.index_in_dim(parts, i, axis + 1, keepdims=True) for i in range(radix)]
    sums, differences = _butterfly(v[0::2], v[1::2])
    if not last:
        (s, t), (d, e) = sums, differences
        (s, d), (t, e) = _butterfly((s, d), (t, e))
        sums, differences = (s, d), (t, e)
    return jnp.concatenate([*sums, *differences], axis + 1).reshape(groups.shape)


def _butterfly(a, b):
    """(a + b, a - b), pair by pair."""
    pairs = list(zip(a, b, strict=True))
    return [x + y for x, y in pairs], [x - y for x, y in pairs]


def _along(vector, axis, ndim):
    """A vector that broadcasts along `axis` of an array with `ndim` axes."""
    return vector.reshape([-1 if i == axis else 1 for i in range(ndim)])

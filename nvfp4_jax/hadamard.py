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
    groups = x.reshape(*before, -1, n, *after)
    groups = groups * _along(signs, axis + 1, groups.ndim)
    for stage in range(n.bit_length() - 1):
        groups = _butterfly(groups, 2**stage, axis + 1)
    return groups.reshape(x.shape) * np.float32(1 / np.sqrt(np.float32(n)))


def _butterfly(groups, distance, axis):
    """(a, b) -> (a + b, a - b) for elements `distance` apart along `axis`.

    Written as `±x + reversed x`, which XLA fuses; slices and a concatenation cost a pass a stage.
    """
    before, after = groups.shape[:axis], groups.shape[axis + 1 :]
    pairs = groups.reshape(*before, -1, 2, distance, *after)
    signs = _along(np.asarray([1, -1], np.float32), axis + 1, pairs.ndim)
    return (pairs * signs + jnp.flip(pairs, axis + 1)).reshape(groups.shape)


def _along(vector, axis, ndim):
    """A vector that broadcasts along `axis` of an array with `ndim` axes."""
    return vector.reshape([-1 if i == axis else 1 for i in range(ndim)])

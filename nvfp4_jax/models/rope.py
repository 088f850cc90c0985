"""Rotary position embedding (RoPE): position as an angle.

Channel pair (i, i + head_dim/2) of a query or key at position t is rotated by the angle
t * theta^(-2i / head_dim), so that a product of query and key depends on the distance of their
positions only. Pairs are taken half a head apart, as in the Hugging Face implementations (the
original paper pairs neighbours; the two differ by a fixed permutation of channels).

Source: arXiv 2104.09864.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

from nvfp4_jax.models.product import accumulator


def rotate(x: Array, positions: Array, theta: float) -> Array:
    """Rotate x (batch, length, heads, head_dim) by positions (batch or 1, length).

    Angles, sines and the rotation are FP32; the result has the dtype of x.
    """
    wide = accumulator(x.dtype)
    half = x.shape[-1] // 2
    frequencies = theta ** (-jnp.arange(half, dtype=wide) / half)
    angles = positions.astype(wide)[..., None, None] * frequencies[None, None, None]
    sin, cos = jnp.sin(angles), jnp.cos(angles)
    first, second = jnp.split(x.astype(wide), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x.dtype)

"""Viewing a tensor as blocks: split axes, reduce within a block, spread a scale over it.

A block is given by its length along each axis of the tensor: `(1, 16)` is sixteen neighbours of
a row, `(16, 16)` a tile. The blocked view of a (50, 40) tensor under (16, 16) has the shape
(4, 16, 3, 16), after padding with zeros, and its scales (4, 1, 3, 1): they broadcast.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array

from nvfp4_jax.quantizer import Quantizer

Lengths = tuple[int, ...]


def block_lengths(quantizer: Quantizer, shape: tuple[int, ...], axis: int) -> Lengths:
    """The block's length along each axis; the rows of a square block are the other of the last two.

    Raises:
      ValueError: a square block on a tensor whose contraction axis is not one of its last two.
    """
    if quantizer.block is None:
        return tuple(max(size, 1) for size in shape)  # an axis of none has no blocks
    rows, length = quantizer.block
    axis %= len(shape)
    if rows == 1:
        return tuple(length if i == axis else 1 for i in range(len(shape)))
    if len(shape) < 2 or axis < len(shape) - 2:
        raise ValueError(
            f"{quantizer.granularity} blocks of shape {shape} along axis {axis}: flatten it to "
            "(rows, axis) first"
        )
    return tuple(rows if i >= len(shape) - 2 else 1 for i in range(len(shape)))


def pad_to(x: Array, shape: tuple[int, ...]) -> Array:
    """Zeros appended up to `shape`; zeros change neither a maximum nor a product."""
    if x.shape == shape:
        return x
    return jnp.pad(x, [(0, to - size) for size, to in zip(x.shape, shape, strict=True)])


def padded_shape(shape: tuple[int, ...], lengths: Lengths) -> tuple[int, ...]:
    """Every axis rounded up to a multiple of its block length."""
    return tuple(-(-size // length) * length for size, length in zip(shape, lengths, strict=True))


def split(x: Array, lengths: Lengths) -> Array:
    """Every blocked axis of n * b elements as two axes (n, b); axes of block 1 stay one axis."""
    x = pad_to(x, padded_shape(x.shape, lengths))
    return x.reshape(_split_shape(x.shape, lengths))


def join(blocks: Array, lengths: Lengths, shape: tuple[int, ...]) -> Array:
    """The inverse of `split`, without its padding."""
    padded = padded_shape(shape, lengths)
    x = blocks.reshape(padded)
    return x if padded == shape else x[tuple(slice(size) for size in shape)]


def inner_axes(lengths: Lengths) -> tuple[int, ...]:
    """The axes of the split view that lie within a block."""
    axes, position = [], 0
    for length in lengths:
        position += 2 if length > 1 else 1
        if length > 1:
            axes.append(position - 1)
    return tuple(axes)


def scale_shape(shape: tuple[int, ...], lengths: Lengths) -> tuple[int, ...]:
    """The number of blocks along each axis."""
    return tuple(-(-size // length) for size, length in zip(shape, lengths, strict=True))


def expand_scale(scale: Array, lengths: Lengths) -> Array:
    """A scale of `scale_shape` with ones inserted, to broadcast against the split view."""
    return jnp.expand_dims(scale, inner_axes(lengths))


def _split_shape(shape, lengths):
    pairs = zip(shape, lengths, strict=True)
    return tuple(s for size, b in pairs for s in ((size // b, b) if b > 1 else (size,)))

"""Two bf16 in one 32-bit word, the even column in the lower half, as memory has them.

Tiles are read and written in words, and what is the same for both halves (signs, scales, the
products that are the result) is done to both at once. Arithmetic in float32 takes them apart.
"""

from __future__ import annotations

import triton
import triton.language as tl

from nvfp4_jax.kernels.triton_assembly import larger_pair, magnitude_pair, pair


@triton.jit
def halves(tile):
    """(even columns, odd columns) of a tile (A, B, C, D)."""
    A: tl.constexpr = tile.shape[0]
    B: tl.constexpr = tile.shape[1]
    C: tl.constexpr = tile.shape[2]
    D: tl.constexpr = tile.shape[3]
    return tl.split(tile.reshape(A, B, C, D // 2, 2))


@triton.jit
def interleaved(even, odd):
    """The inverse of `halves`."""
    A: tl.constexpr = even.shape[0]
    B: tl.constexpr = even.shape[1]
    C: tl.constexpr = even.shape[2]
    D: tl.constexpr = even.shape[3]
    return tl.join(even, odd).reshape(A, B, C, 2 * D)


@triton.jit
def floats(words):
    """The bf16 of `words` as float32."""
    even = (words << 16).to(tl.float32, bitcast=True)
    odd = (words & 0xFFFF0000).to(tl.float32, bitcast=True)
    return interleaved(even, odd)


@triton.jit
def rounded(tile):
    """float32 rounded to bf16, as words."""
    even, odd = halves(tile)
    return pair(even, odd)


@triton.jit
def truncated(tile):
    """The upper halves of float32, as words: for their signs."""
    even, odd = halves(tile.to(tl.uint32, bitcast=True))
    return (even >> 16) | (odd & 0xFFFF0000)


@triton.jit
def column_amax(words):
    """max |.| over the 16 rows, float32 (A, B, 1, D), of the bf16 in words (A, B, 16, D / 2)."""
    A: tl.constexpr = words.shape[0]
    B: tl.constexpr = words.shape[1]
    W: tl.constexpr = words.shape[3]
    largest = magnitude_pair(words).permute(0, 1, 3, 2)
    for step in tl.static_range(4):
        even, odd = tl.split(largest.reshape(A, B, W, 8 >> step, 2))
        largest = larger_pair(even, odd)
    return floats(largest.reshape(A, B, 1, W))


@triton.jit
def quarters(words):
    """The 16 rows of words (A, B, 16, W) as four times four, in order."""
    first, second = _row_halves(words)
    a, b = _row_halves(first)
    c, d = _row_halves(second)
    return a, b, c, d


@triton.jit
def _row_halves(words):
    A: tl.constexpr = words.shape[0]
    B: tl.constexpr = words.shape[1]
    R: tl.constexpr = words.shape[2]
    W: tl.constexpr = words.shape[3]
    return tl.split(words.reshape(A, B, 2, R // 2, W).permute(0, 1, 3, 4, 2))

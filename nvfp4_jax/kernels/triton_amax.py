"""The largest magnitude of a tensor, as stored and as rotated, from one read.

Magnitudes are compared as the integers that their bits are: NaN > infinity > every number, so
none is lost. Rounding to bf16 and the factor 1/4 of the rotation grow with their argument, so the
maximum of what is rounded is the maximum, rounded: once a program instead of once an element.

A tensor is read from its end to its beginning: what wrote it last wrote its end, and what reads
it next, the quantizer, starts at its beginning, so that L2 has something of it for both.
"""

from __future__ import annotations

import triton
import triton.language as tl

from nvfp4_jax.kernels.triton_tiles import load_tile, origin_of, rotate_tile


@triton.jit
def flat_amax_kernel(
    x, out, SIZE: tl.constexpr, TILE: tl.constexpr, ROUND: tl.constexpr, COPIES: tl.constexpr
):
    """Of the tensor as stored, whatever its shape: a run of TILE elements a program."""
    start = (tl.num_programs(0) - 1 - tl.program_id(0)).to(tl.int64) * TILE
    places = tl.arange(0, TILE)
    if SIZE % TILE == 0:
        values = tl.load(x + start + places)
    else:
        values = tl.load(x + start + places, mask=places < SIZE - start, other=0.0)
    top = tl.max(magnitude_bits(values.to(tl.float32)), 0)
    for copy in tl.static_range(COPIES):
        tl.atomic_max(out + copy, rounded_bits(top, ROUND), sem="relaxed")


@triton.jit
def tile_amax_kernel(
    x, signs, out,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, R: tl.constexpr, N: tl.constexpr, G: tl.constexpr,
    ROUND: tl.constexpr, RHT0: tl.constexpr, ALONG_ROWS0: tl.constexpr,
    RHT1: tl.constexpr, ALONG_ROWS1: tl.constexpr, COPIES: tl.constexpr,
):  # fmt: skip
    """Of one or two copies of the tensor, at least one of them rotated."""
    from_the_end = tl.num_programs(0) - 1 - tl.program_id(0)
    batch, row, column = origin_of(from_the_end, ROWS, COLUMNS, R, N)
    tile, _ = load_tile(x, batch, row, column, ROWS, COLUMNS, R, N, G, ROUND)
    ROUNDED: tl.constexpr = ROUND or x.dtype.element_ty == tl.bfloat16
    first = tile_amax(tile, signs, RHT0, ALONG_ROWS0, ROUNDED, R, N, G)
    tl.atomic_max(out, first, sem="relaxed")
    if COPIES == 2:
        second = tile_amax(tile, signs, RHT1, ALONG_ROWS1, ROUNDED, R, N, G)
        tl.atomic_max(out + 1, second, sem="relaxed")


@triton.jit
def tile_amax(
    tile, signs, RHT: tl.constexpr, ALONG_ROWS: tl.constexpr, ROUNDED: tl.constexpr,
    R: tl.constexpr, N: tl.constexpr, G: tl.constexpr,
):  # fmt: skip
    """The bits of the tile's largest magnitude, as it is or as it is rotated (RHT)."""
    if RHT:
        tile = rotate_tile(tile, tl.load(signs + tl.arange(0, 16)), ALONG_ROWS, R, N, G)
    top = tl.max(tl.max(tl.max(tl.max(magnitude_bits(tile), 3), 2), 1), 0)
    if RHT:
        top = magnitude_bits(top.to(tl.float32, bitcast=True) * 0.25)
    return rounded_bits(top, ROUNDED and RHT)


@triton.jit
def magnitude_bits(x):
    """The bits of |x|, which order as magnitudes do."""
    return x.to(tl.int32, bitcast=True) & 0x7FFFFFFF


@triton.jit
def rounded_bits(bits, ROUND: tl.constexpr):
    """The bits of a non-negative float32, rounded to bf16 if ROUND."""
    if ROUND:
        bits = bits.to(tl.float32, bitcast=True).to(tl.bfloat16).to(tl.float32)
        bits = bits.to(tl.int32, bitcast=True)
    return bits

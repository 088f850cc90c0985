"""Quantize in one pass over memory: read a tile, round it, write one or two copies of it.

Steps 1 to 4 of `nvfp4_jax.kernels.xla`, given the tensor's largest magnitude. Both copies come
from one read: for a linear layer's gradient, blocks along the rows of the first and rotated
blocks along the columns of the second.
"""

from __future__ import annotations

import triton
import triton.language as tl

from nvfp4_jax.kernels.triton_assembly import magnitude_times, pair, signed_products
from nvfp4_jax.kernels.triton_pairs import (
    column_amax,
    floats,
    halves,
    quarters,
    rounded,
    truncated,
)
from nvfp4_jax.kernels.triton_philox import random_fractions
from nvfp4_jax.kernels.triton_rounding import nearest_e2m1, stochastic_e2m1
from nvfp4_jax.kernels.triton_scales import block_scales, tensor_factors
from nvfp4_jax.kernels.triton_tiles import load_tile, rotate_tile, store_words, tile_origin


@triton.jit
def operand_kernel(
    x, amax, signs, offset, keys, out,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, R: tl.constexpr, N: tl.constexpr, G: tl.constexpr,
    ROUND: tl.constexpr, PITCH: tl.constexpr, ALONG_ROWS: tl.constexpr, SQUARE: tl.constexpr,
    RHT: tl.constexpr, BITS: tl.constexpr,
):  # fmt: skip
    """One copy, as value times block scale in bf16."""
    batch, row, column = tile_origin(ROWS, COLUMNS, R, N)
    tile, words = load_tile(x, batch, row, column, ROWS, COLUMNS, R, N, G, ROUND)
    _copy(
        out, tile, words, ROUND or x.dtype.element_ty == tl.bfloat16,
        tl.load(amax), signs, offset, keys, batch, row, column, ROWS, COLUMNS, R, N, G,
        PITCH, ALONG_ROWS, SQUARE, RHT, BITS,
    )  # fmt: skip


@triton.jit
def two_operands_kernel(
    x, amax, signs, offset, keys, out0, out1,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, R: tl.constexpr, N: tl.constexpr, G: tl.constexpr,
    ROUND: tl.constexpr,
    PITCH0: tl.constexpr, ALONG_ROWS0: tl.constexpr, SQUARE0: tl.constexpr, RHT0: tl.constexpr,
    BITS0: tl.constexpr,
    PITCH1: tl.constexpr, ALONG_ROWS1: tl.constexpr, SQUARE1: tl.constexpr, RHT1: tl.constexpr,
    BITS1: tl.constexpr,
):  # fmt: skip
    """Two copies from one read."""
    batch, row, column = tile_origin(ROWS, COLUMNS, R, N)
    tile, words = load_tile(x, batch, row, column, ROWS, COLUMNS, R, N, G, ROUND)
    BF16: tl.constexpr = ROUND or x.dtype.element_ty == tl.bfloat16
    _copy(
        out0, tile, words, BF16,
        tl.load(amax), signs, offset, keys, batch, row, column, ROWS, COLUMNS, R, N, G,
        PITCH0, ALONG_ROWS0, SQUARE0, RHT0, BITS0,
    )  # fmt: skip
    _copy(
        out1, tile, words, BF16,
        tl.load(amax + 1), signs, offset, keys + 2, batch, row, column, ROWS, COLUMNS, R, N, G,
        PITCH1, ALONG_ROWS1, SQUARE1, RHT1, BITS1,
    )  # fmt: skip


@triton.jit
def _copy(
    out, tile, words, BF16: tl.constexpr,
    amax, signs, offset, key, batch, row, column, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    R: tl.constexpr, N: tl.constexpr, G: tl.constexpr,
    PITCH: tl.constexpr, ALONG_ROWS: tl.constexpr, SQUARE: tl.constexpr, RHT: tl.constexpr,
    BITS: tl.constexpr,
):  # fmt: skip
    """Rotate, quantize and store.

    The registers of a program decide how many run at once, and with them how much is read while
    others compute. What 16 rows along columns need for stochastic rounding, a scale and a
    multiplier a row and random numbers besides, four rows at a time need a quarter of.
    """
    if BF16:
        tile = floats(words)  # and not what the other copy had: 64 registers that are free till now
    if RHT:
        tile, words = rotated(tile, signs, BF16, ALONG_ROWS, R, N, G)
    first_row, first_column = place_in_whole(offset, batch, row, column, PITCH)
    PLAIN_ROWS: tl.constexpr = not (RHT or ALONG_ROWS or SQUARE)
    if PLAIN_ROWS and BF16 and BITS > 0 and R == 16 and ROWS % 16 == 0:
        parts = quarters(words)
        for i in tl.static_range(4):
            _quantize_and_store(
                out, floats(parts[i]), parts[i], BF16, amax, key, first_row + 4 * i, first_column,
                batch, row + 4 * i, column, ROWS, COLUMNS, 4, N, G, ALONG_ROWS, SQUARE, RHT, BITS,
            )  # fmt: skip
    else:
        _quantize_and_store(
            out, tile, words, BF16, amax, key, first_row, first_column,
            batch, row, column, ROWS, COLUMNS, R, N, G, ALONG_ROWS, SQUARE, RHT, BITS,
        )  # fmt: skip


@triton.jit
def _quantize_and_store(
    out, tile, words, BF16: tl.constexpr, amax, key, first_row, first_column,
    batch, row, column, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    R: tl.constexpr, N: tl.constexpr, G: tl.constexpr,
    ALONG_ROWS: tl.constexpr, SQUARE: tl.constexpr, RHT: tl.constexpr, BITS: tl.constexpr,
):  # fmt: skip
    """A tile as it is; a rotated axis is as long as its rotations, padding included."""
    values, scale = quantized(
        tile, words, BF16, amax, key, first_row, first_column, ALONG_ROWS, SQUARE, BITS, R, N, G
    )
    result = operand(values, words, scale, ALONG_ROWS and not SQUARE)
    OUT_ROWS: tl.constexpr = (ROWS + 15) // 16 * 16 if RHT and ALONG_ROWS else ROWS
    OUT_COLUMNS: tl.constexpr = (COLUMNS + 15) // 16 * 16 if RHT and not ALONG_ROWS else COLUMNS
    store_words(out, result, batch, row, column, OUT_ROWS, OUT_COLUMNS, R, N, G)


@triton.jit
def place_in_whole(offset, batch, row, column, PITCH: tl.constexpr):
    """(row, column) of a tile's first element in the whole tensor, entries below each other."""
    first_row = (tl.load(offset) + batch.to(tl.uint32)) * PITCH + tl.load(offset + 1)
    return first_row + row.to(tl.uint32), tl.load(offset + 2) + column.to(tl.uint32)


@triton.jit
def rotated(
    tile, signs, BF16: tl.constexpr, ALONG_ROWS: tl.constexpr,
    R: tl.constexpr, N: tl.constexpr, G: tl.constexpr,
):  # fmt: skip
    """The tile rotated, and words with its signs; BF16: rounded to it.

    Of bf16 the factor 1/4 may come first: nothing that small is lost in float32.
    """
    sign = tl.load(signs + tl.arange(0, 16))
    if BF16:
        words = rounded(rotate_tile(tile, sign * 0.25, ALONG_ROWS, R, N, G))
        tile = floats(words)
    else:
        tile = rotate_tile(tile, sign, ALONG_ROWS, R, N, G) * 0.25
        words = truncated(tile)
    return tile, words


@triton.jit
def quantized(
    tile, words, BF16: tl.constexpr, amax_bits, key, first_row, first_column,
    ALONG_ROWS: tl.constexpr, SQUARE: tl.constexpr, BITS: tl.constexpr,
    R: tl.constexpr, N: tl.constexpr, G: tl.constexpr,
):  # fmt: skip
    """(E2M1 magnitudes, perhaps beyond 6, and block scales that broadcast against them).

    BF16: `words` are the values, and pairs of them can be compared at once.
    """
    multiplier, decode = tensor_factors(amax_bits)
    if BF16 and ALONG_ROWS and not SQUARE:
        block_amax = column_amax(words)
    else:
        a = tl.abs(tile)
        block_amax = tl.max(a, 2, keep_dims=True) if ALONG_ROWS or SQUARE else a
        if SQUARE or not ALONG_ROWS:
            block_amax = tl.max(tl.max(block_amax, 3, keep_dims=True), 0, keep_dims=True)
    scale, e = block_scales(block_amax, multiplier, decode)
    a = magnitude_times(tile, e)
    if BITS == 0:
        a = nearest_e2m1(a)
    else:
        random = random_fractions(key, first_row, first_column, BITS, R, N * 16)
        random = random.reshape(R, N, G, 16 // G).permute(2, 1, 0, 3)
        a = stochastic_e2m1(a, random)
    return a, scale


@triton.jit
def operand(values, words, scale, BY_COLUMN: tl.constexpr):
    """Value, at most 6 and with the sign in `words`, times scale; as words of bf16."""
    even, odd = halves(values)
    scales = rounded(scale) if BY_COLUMN else pair(scale, scale)
    return signed_products(even, odd, words, tl.broadcast_to(scales, even.shape))

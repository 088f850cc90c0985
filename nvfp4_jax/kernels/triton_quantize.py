"""Quantize in one pass over memory: read a tile, round it, write one or two copies of it.

Steps 1 to 4 of `nvfp4_jax.kernels.xla`, given the tensor's largest magnitude. Both copies come
from one read: for a linear layer's gradient, blocks along the rows of the first and rotated
blocks along the columns of the second.
"""

from __future__ import annotations

import triton
import triton.language as tl

from nvfp4_jax.kernels.triton_philox import random_bits
from nvfp4_jax.kernels.triton_rounding import (
    nearest_e2m1,
    stochastic_e2m1,
    with_sign_of,
)
from nvfp4_jax.kernels.triton_scales import block_scales, tensor_factors
from nvfp4_jax.kernels.triton_tiles import load_tile, rotate_tile, store_tile, tile_origin


@triton.jit
def operand_kernel(
    x, amax, signs, offset, keys, out,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, R: tl.constexpr, N: tl.constexpr, G: tl.constexpr,
    ROUND: tl.constexpr, PITCH: tl.constexpr, ALONG_ROWS: tl.constexpr, SQUARE: tl.constexpr,
    RHT: tl.constexpr, BITS: tl.constexpr,
):  # fmt: skip
    """One copy, as value times block scale in bf16."""
    batch, row, column = tile_origin(ROWS, COLUMNS, R, N)
    tile = load_tile(x, batch, row, column, ROWS, COLUMNS, R, N, G, ROUND)
    tile = rotated(x, tile, signs, ROUND, ALONG_ROWS, RHT, R, N, G)
    values, scale = quantized(
        tile, tl.load(amax), batch, row, column, offset, keys,
        PITCH, ALONG_ROWS, SQUARE, BITS, R, N, G,
    )  # fmt: skip
    store_operand(out, values * scale, batch, row, column, ROWS, COLUMNS, ALONG_ROWS, RHT, R, N, G)


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
    """Two copies from one read; the first is stored before the second is begun."""
    batch, row, column = tile_origin(ROWS, COLUMNS, R, N)
    tile = load_tile(x, batch, row, column, ROWS, COLUMNS, R, N, G, ROUND)
    first = rotated(x, tile, signs, ROUND, ALONG_ROWS0, RHT0, R, N, G)
    values, scale = quantized(
        first, tl.load(amax), batch, row, column, offset, keys,
        PITCH0, ALONG_ROWS0, SQUARE0, BITS0, R, N, G,
    )  # fmt: skip
    store_operand(
        out0, values * scale, batch, row, column, ROWS, COLUMNS, ALONG_ROWS0, RHT0, R, N, G
    )
    second = rotated(x, tile, signs, ROUND, ALONG_ROWS1, RHT1, R, N, G)
    values, scale = quantized(
        second, tl.load(amax + 1), batch, row, column, offset, keys + 2,
        PITCH1, ALONG_ROWS1, SQUARE1, BITS1, R, N, G,
    )  # fmt: skip
    store_operand(
        out1, values * scale, batch, row, column, ROWS, COLUMNS, ALONG_ROWS1, RHT1, R, N, G
    )


@triton.jit
def rotated(
    x, tile, signs, ROUND: tl.constexpr, ALONG_ROWS: tl.constexpr, RHT: tl.constexpr,
    R: tl.constexpr, N: tl.constexpr, G: tl.constexpr,
):  # fmt: skip
    """The tile, rotated if the copy is: rounded to bf16 where the tensor is (taken as) bf16."""
    if RHT:
        tile = rotate_tile(tile, tl.load(signs + tl.arange(0, 16)), ALONG_ROWS, R, N, G)
        if ROUND or x.dtype.element_ty == tl.bfloat16:
            tile = tile.to(tl.bfloat16).to(tl.float32)
    return tile


@triton.jit
def quantized(
    tile, amax_bits, batch, row, column, offset, key,
    PITCH: tl.constexpr, ALONG_ROWS: tl.constexpr, SQUARE: tl.constexpr, BITS: tl.constexpr,
    R: tl.constexpr, N: tl.constexpr, G: tl.constexpr,
):  # fmt: skip
    """(E2M1 values, block scales that broadcast against them), both float32."""
    a = tl.abs(tile)
    multiplier, decode = tensor_factors(amax_bits)
    block_amax = tl.max(a, 2, keep_dims=True) if ALONG_ROWS or SQUARE else a
    if SQUARE or not ALONG_ROWS:
        block_amax = tl.max(tl.max(block_amax, 3, keep_dims=True), 0, keep_dims=True)
    scale, e = block_scales(block_amax, multiplier, decode)
    a = tl.minimum(a * e, 6.0)
    if BITS == 0:
        a = nearest_e2m1(a)
    else:
        first_row = (tl.load(offset) + batch.to(tl.uint32)) * PITCH + tl.load(offset + 1)
        first_row += row.to(tl.uint32)
        first_column = tl.load(offset + 2) + column.to(tl.uint32)
        random = random_bits(key, first_row, first_column, BITS, R, N * 16)
        a = stochastic_e2m1(a, random.reshape(R, N, G, 16 // G).permute(2, 1, 0, 3), BITS)
    return with_sign_of(a, tile), scale


@triton.jit
def store_operand(
    out, tile, batch, row, column, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    ALONG_ROWS: tl.constexpr, RHT: tl.constexpr,
    R: tl.constexpr, N: tl.constexpr, G: tl.constexpr,
):  # fmt: skip
    """A rotated axis is as long as its rotations, padding included."""
    OUT_ROWS: tl.constexpr = (ROWS + 15) // 16 * 16 if RHT and ALONG_ROWS else ROWS
    OUT_COLUMNS: tl.constexpr = (COLUMNS + 15) // 16 * 16 if RHT and not ALONG_ROWS else COLUMNS
    store_tile(out, tile, batch, row, column, OUT_ROWS, OUT_COLUMNS, R, N, G)

"""Quantize to two codes a byte and one E4M3 byte a block, and back to a bf16 operand.

A byte holds neighbours along the contraction axis, the even one in its low nibble, so that what
is kept of an operand is contiguous in the order a GEMM contracts it. That axis is padded to whole
blocks, which costs nothing to read back.
"""

from __future__ import annotations

import triton
import triton.language as tl

from nvfp4_jax.kernels.triton_codes import decode_e2m1, decode_e4m3, encode_e2m1, encode_e4m3
from nvfp4_jax.kernels.triton_pairs import rounded
from nvfp4_jax.kernels.triton_quantize import place_in_whole, quantized, rotated
from nvfp4_jax.kernels.triton_rounding import with_sign_of
from nvfp4_jax.kernels.triton_tiles import load_tile, store_words, tile_origin


@triton.jit
def pack_kernel(
    x, amax, signs, offset, keys, codes, scales,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, R: tl.constexpr, N: tl.constexpr, G: tl.constexpr,
    ROUND: tl.constexpr, PITCH: tl.constexpr, ALONG_ROWS: tl.constexpr, SQUARE: tl.constexpr,
    RHT: tl.constexpr, BITS: tl.constexpr,
):  # fmt: skip
    """One copy as codes and scales; scales are stored as bytes."""
    batch, row, column = tile_origin(ROWS, COLUMNS, R, N)
    tile, words = load_tile(x, batch, row, column, ROWS, COLUMNS, R, N, G, ROUND)
    BF16: tl.constexpr = ROUND or x.dtype.element_ty == tl.bfloat16
    if RHT:
        tile, words = rotated(tile, signs, BF16, ALONG_ROWS, R, N, G)
    first_row, first_column = place_in_whole(offset, batch, row, column, PITCH)
    values, scale = quantized(
        tile, words, BF16, tl.load(amax), keys, first_row, first_column,
        ALONG_ROWS, SQUARE, BITS, R, N, G,
    )  # fmt: skip
    nibbles = encode_e2m1(with_sign_of(tl.minimum(values, 6.0), tile))
    V: tl.constexpr = 16 // G
    if ALONG_ROWS:
        even, odd = tl.split(nibbles.permute(0, 1, 3, 2).reshape(G, N, V, R // 2, 2))
        even, odd = even.permute(0, 1, 3, 2), odd.permute(0, 1, 3, 2)
    else:
        even, odd = tl.split(nibbles.reshape(G, N, R, V // 2, 2))
    packed = (even | (odd << 4)).to(tl.uint8)
    _store_codes(codes, packed, batch, row, column, ROWS, COLUMNS, ALONG_ROWS, R, N, G)
    places, inside = _scale_places(
        scales, batch, row, column, ROWS, COLUMNS, ALONG_ROWS, SQUARE, R, N, G
    )
    tl.store(places, encode_e4m3(scale), mask=inside)


@triton.jit
def unpack_kernel(
    codes, scales, out,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, R: tl.constexpr, N: tl.constexpr, G: tl.constexpr,
    ALONG_ROWS: tl.constexpr, SQUARE: tl.constexpr,
):  # fmt: skip
    """Value times block scale of (ROWS, COLUMNS) elements, in bf16."""
    batch, row, column = tile_origin(ROWS, COLUMNS, R, N)
    V: tl.constexpr = 16 // G
    packed = _load_codes(codes, batch, row, column, ROWS, COLUMNS, ALONG_ROWS, R, N, G)
    pairs = tl.join(packed & 15, packed >> 4)
    nibbles = pairs.permute(0, 1, 2, 4, 3) if ALONG_ROWS else pairs
    places, inside = _scale_places(
        scales, batch, row, column, ROWS, COLUMNS, ALONG_ROWS, SQUARE, R, N, G
    )
    scale = decode_e4m3(tl.load(places, mask=inside, other=0))
    tile = decode_e2m1(nibbles.reshape(G, N, R, V)) * scale
    store_words(out, rounded(tile), batch, row, column, ROWS, COLUMNS, R, N, G)


@triton.jit
def _store_codes(
    codes, packed, batch, row, column, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    ALONG_ROWS: tl.constexpr, R: tl.constexpr, N: tl.constexpr, G: tl.constexpr,
):  # fmt: skip
    places, inside = _code_places(codes, batch, row, column, ROWS, COLUMNS, ALONG_ROWS, R, N, G)
    tl.store(places, packed, mask=inside)


@triton.jit
def _load_codes(
    codes, batch, row, column, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    ALONG_ROWS: tl.constexpr, R: tl.constexpr, N: tl.constexpr, G: tl.constexpr,
):  # fmt: skip
    places, inside = _code_places(codes, batch, row, column, ROWS, COLUMNS, ALONG_ROWS, R, N, G)
    return tl.load(places, mask=inside, other=0).to(tl.int32)


@triton.jit
def _code_places(
    codes, batch, row, column, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    ALONG_ROWS: tl.constexpr, R: tl.constexpr, N: tl.constexpr, G: tl.constexpr,
):  # fmt: skip
    """Pointers to the tile's bytes and whether they exist; half as many along the contraction."""
    ACROSS: tl.constexpr = 1 if ALONG_ROWS else 2
    DOWN: tl.constexpr = 2 if ALONG_ROWS else 1
    WIDTH: tl.constexpr = COLUMNS if ALONG_ROWS else (COLUMNS + 15) // 16 * 8
    HEIGHT: tl.constexpr = (ROWS + 15) // 16 * 8 if ALONG_ROWS else ROWS
    V: tl.constexpr = 16 // G // ACROSS
    threads = tl.arange(0, G)[:, None, None, None]
    blocks = tl.arange(0, N)[None, :, None, None]
    rows = tl.arange(0, R // DOWN)[None, None, :, None]
    columns = blocks * (G * V) + threads * V + tl.arange(0, V)[None, None, None, :]
    row, column = row // DOWN, column // ACROSS
    start = codes + (batch.to(tl.int64) * HEIGHT + row) * WIDTH + column
    return start + (rows * WIDTH + columns), (rows < HEIGHT - row) & (columns < WIDTH - column)


@triton.jit
def _scale_places(
    scales, batch, row, column, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    ALONG_ROWS: tl.constexpr, SQUARE: tl.constexpr,
    R: tl.constexpr, N: tl.constexpr, G: tl.constexpr,
):  # fmt: skip
    """Pointers that broadcast against the tile, one a block, and whether they exist."""
    V: tl.constexpr = 16 // G
    blocks = tl.arange(0, N)[None, :, None, None]
    if ALONG_ROWS and not SQUARE:
        threads = tl.arange(0, G)[:, None, None, None]
        columns = blocks * 16 + threads * V + tl.arange(0, V)[None, None, None, :]
        WIDTH: tl.constexpr = COLUMNS
    else:
        columns = blocks
        column = column // 16
        WIDTH: tl.constexpr = (COLUMNS + 15) // 16
    if ALONG_ROWS or SQUARE:
        rows = tl.zeros((1, 1, 1, 1), tl.int32)
        row = row // 16
        HEIGHT: tl.constexpr = (ROWS + 15) // 16
    else:
        rows = tl.arange(0, R)[None, None, :, None]
        HEIGHT: tl.constexpr = ROWS
    start = scales + (batch.to(tl.int64) * HEIGHT + row) * WIDTH + column
    return start + (rows * WIDTH + columns), (rows < HEIGHT - row) & (columns < WIDTH - column)

"""Quantize to what a 4-bit tensor core reads: one or two copies of a tensor from one read.

The layout is that of `nvfp4_jax.kernels.blackwell_layout`: the contraction contiguous, two codes
a byte, scales in tiles of 128 x 4. A copy that contracts rows (tokens, in Wgrad) is transposed on
the way. Sixteen rows of a column lie in one thread, which rounds and packs them, so that what
threads exchange is 4 bits an element and no more.

A program has B x N blocks of 16 rows by 16 columns. To the device functions it shares with the
other kernels they are B * N blocks beside each other, a tile (G, B * N, 16, V) as in
`triton_tiles`. Up to the cast the arithmetic is the definition's, in its order. HARDWARE picks the
cast: Blackwell's instructions, or arithmetic that any GPU has.
"""

from __future__ import annotations

import triton
import triton.language as tl

from nvfp4_jax.kernels.triton_casts import nearest_e4m3_byte
from nvfp4_jax.kernels.triton_codes import decode_e4m3, encode_e4m3
from nvfp4_jax.kernels.triton_pairs import floats
from nvfp4_jax.kernels.triton_pairs import rounded as rounded_to_bf16
from nvfp4_jax.kernels.triton_quads import quads
from nvfp4_jax.kernels.triton_quantize import rotated
from nvfp4_jax.kernels.triton_scales import block_scales, multipliers, tensor_factors


@triton.jit
def native_kernel(
    x, amax, signs, offset, keys, codes, scales,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, ACROSS: tl.constexpr, WHOLE: tl.constexpr,
    B: tl.constexpr, N: tl.constexpr, G: tl.constexpr,
    ROUND: tl.constexpr, HARDWARE: tl.constexpr, PITCH: tl.constexpr, ALONG_ROWS: tl.constexpr,
    SQUARE: tl.constexpr, RHT: tl.constexpr, BITS: tl.constexpr, LENGTH: tl.constexpr,
):  # fmt: skip
    """One copy. LENGTH is the padded contraction, and ACROSS the programs beside each other.

    WHOLE: programs cover the tensor and no padding, which makes all accesses unmasked.
    """
    row, column = _origin(ACROSS, B, N)
    tile = _load(x, row, column, ROWS, COLUMNS, WHOLE, B, N, G, ROUND)
    _copy(
        codes, scales, tile, ROUND or x.dtype.element_ty == tl.bfloat16,
        tl.load(amax), signs, offset, keys, row, column, ROWS, COLUMNS, WHOLE, B, N, G,
        HARDWARE, PITCH, ALONG_ROWS, SQUARE, RHT, BITS, LENGTH,
    )  # fmt: skip


@triton.jit
def two_native_kernel(
    x, amax, signs, offset, keys, codes0, scales0, codes1, scales1,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, ACROSS: tl.constexpr, WHOLE: tl.constexpr,
    B: tl.constexpr, N: tl.constexpr, G: tl.constexpr,
    ROUND: tl.constexpr, HARDWARE: tl.constexpr,
    PITCH0: tl.constexpr, ALONG_ROWS0: tl.constexpr, SQUARE0: tl.constexpr, RHT0: tl.constexpr,
    BITS0: tl.constexpr, LENGTH0: tl.constexpr,
    PITCH1: tl.constexpr, ALONG_ROWS1: tl.constexpr, SQUARE1: tl.constexpr, RHT1: tl.constexpr,
    BITS1: tl.constexpr, LENGTH1: tl.constexpr,
):  # fmt: skip
    """Two copies from one read."""
    row, column = _origin(ACROSS, B, N)
    tile = _load(x, row, column, ROWS, COLUMNS, WHOLE, B, N, G, ROUND)
    BF16: tl.constexpr = ROUND or x.dtype.element_ty == tl.bfloat16
    _copy(
        codes0, scales0, tile, BF16,
        tl.load(amax), signs, offset, keys, row, column, ROWS, COLUMNS, WHOLE, B, N, G,
        HARDWARE, PITCH0, ALONG_ROWS0, SQUARE0, RHT0, BITS0, LENGTH0,
    )  # fmt: skip
    _copy(
        codes1, scales1, tile, BF16,
        tl.load(amax + 1), signs, offset, keys + 2, row, column, ROWS, COLUMNS, WHOLE, B, N, G,
        HARDWARE, PITCH1, ALONG_ROWS1, SQUARE1, RHT1, BITS1, LENGTH1,
    )  # fmt: skip


@triton.jit
def _origin(ACROSS: tl.constexpr, B: tl.constexpr, N: tl.constexpr):
    """(first row, first column) of this program; columns vary fastest."""
    program = tl.program_id(0)
    return program // ACROSS * (B * 16), program % ACROSS * (N * 16)


@triton.jit
def _load(
    x, row, column, ROWS: tl.constexpr, COLUMNS: tl.constexpr, WHOLE: tl.constexpr,
    B: tl.constexpr, N: tl.constexpr, G: tl.constexpr, ROUND: tl.constexpr,
):  # fmt: skip
    """The tile as float32, zeros outside; of bf16 read in words of two."""
    V: tl.constexpr = 16 // G
    if x.dtype.element_ty == tl.bfloat16 and COLUMNS % 2 == 0:
        words = x.to(tl.pointer_type(tl.uint32))
        HALF: tl.constexpr = COLUMNS // 2
        places, inside = _places(words, row, column // 2, ROWS, HALF, WHOLE, B, N, G, V // 2)
        tile = floats(tl.load(places, mask=inside, other=0))
    else:
        places, inside = _places(x, row, column, ROWS, COLUMNS, WHOLE, B, N, G, V)
        tile = tl.load(places, mask=inside, other=0.0).to(tl.float32)
        if ROUND:
            tile = floats(rounded_to_bf16(tile))
    return tile


@triton.jit
def _places(
    base, row, column, ROWS: tl.constexpr, COLUMNS: tl.constexpr, WHOLE: tl.constexpr,
    B: tl.constexpr, N: tl.constexpr, G: tl.constexpr, V: tl.constexpr,
):  # fmt: skip
    """Pointers to the tile at (row, column) of (ROWS, COLUMNS), and which of it is inside."""
    threads = tl.arange(0, G)[:, None, None, None]
    blocks = tl.arange(0, B * N)[None, :, None, None]
    rows = blocks // N * 16 + tl.arange(0, 16)[None, None, :, None]
    columns = blocks % N * (G * V) + threads * V + tl.arange(0, V)[None, None, None, :]
    if WHOLE:
        inside = tl.full((1, 1, 1, 1), True, tl.int1)
    else:
        inside = (rows < ROWS - row) & (columns < COLUMNS - column)
    return base + (row.to(tl.int64) * COLUMNS + column) + (rows * COLUMNS + columns), inside


@triton.jit
def _copy(
    codes, scales, tile, BF16: tl.constexpr,
    amax, signs, offset, key, row, column, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    WHOLE: tl.constexpr, B: tl.constexpr, N: tl.constexpr, G: tl.constexpr, HARDWARE: tl.constexpr,
    PITCH: tl.constexpr, ALONG_ROWS: tl.constexpr, SQUARE: tl.constexpr, RHT: tl.constexpr,
    BITS: tl.constexpr, LENGTH: tl.constexpr,
):  # fmt: skip
    """Rotate, quantize and store; what a tile has beyond the tensor is zeros, and stored as such.

    The rotation of rows that end within one block fills it: those rows count as the tensor's.
    """
    if RHT:
        tile, _ = rotated(tile, signs, BF16, ALONG_ROWS, 16, B * N, G)
    byte, multiplier = _scales(tile, amax, ALONG_ROWS, SQUARE, HARDWARE)
    first_row = tl.load(offset) * PITCH + tl.load(offset + 1) + row.to(tl.uint32)
    first_column = tl.load(offset + 2) + column.to(tl.uint32)
    four = quads(
        tile * multiplier, key, first_row, first_column, ALONG_ROWS, BITS, HARDWARE, B, N, G
    )
    V: tl.constexpr = 16 // G
    if ALONG_ROWS:
        four = four.reshape(G, B, N, V, 4).permute(2, 0, 3, 1, 4).reshape(N * 16, B * 4)
        _store_codes(codes, four, column, row // 4, COLUMNS, LENGTH, WHOLE)
        byte = tl.broadcast_to(byte, (G, B * N, 1, V))
        byte = byte.reshape(G, B, N, V).permute(2, 0, 3, 1).reshape(N * 16, B)
        _store_scales(scales, byte, column, row // 16, COLUMNS, LENGTH, WHOLE)
    else:
        four = four.reshape(G, B, N, 16, V // 4).permute(1, 3, 2, 0, 4).reshape(B * 16, N * 4)
        _store_codes(codes, four, row, column // 4, ROWS, LENGTH, WHOLE)
        byte = tl.broadcast_to(byte, (1, B * N, 16, 1))
        byte = byte.reshape(B, N, 16).permute(0, 2, 1).reshape(B * 16, N)
        _store_scales(scales, byte, row, column // 16, ROWS, LENGTH, WHOLE)


@triton.jit
def _scales(tile, amax, ALONG_ROWS: tl.constexpr, SQUARE: tl.constexpr, HARDWARE: tl.constexpr):
    """(E4M3 bytes of the blocks, what their elements are multiplied with); both broadcast."""
    a = tl.abs(tile)
    factor, decode = tensor_factors(amax)
    block_amax = tl.max(a, 2, keep_dims=True) if ALONG_ROWS or SQUARE else a
    if SQUARE or not ALONG_ROWS:
        block_amax = tl.max(tl.max(block_amax, 3, keep_dims=True), 0, keep_dims=True)
    if HARDWARE:
        byte = nearest_e4m3_byte(tl.minimum(block_amax * factor, 448.0)).to(tl.uint8)
        return byte, multipliers(decode_e4m3(byte), decode)
    scale, multiplier = block_scales(block_amax, factor, decode)
    return encode_e4m3(scale), multiplier


@triton.jit
def _store_codes(
    codes, four, row, quad, ROWS: tl.constexpr, LENGTH: tl.constexpr, WHOLE: tl.constexpr
):
    """Quads (R, Q) to (row, quad) of (ROWS, LENGTH / 4)."""
    WIDTH: tl.constexpr = LENGTH // 4
    rows = tl.arange(0, four.shape[0])[:, None]
    columns = tl.arange(0, four.shape[1])[None, :]
    base = codes.to(tl.pointer_type(tl.uint16)) + (row.to(tl.int64) * WIDTH + quad)
    if WHOLE:
        tl.store(base + (rows * WIDTH + columns), four.to(tl.uint16))
    else:
        inside = (rows < ROWS - row) & (columns < WIDTH - quad)
        tl.store(base + (rows * WIDTH + columns), four.to(tl.uint16), mask=inside)


@triton.jit
def _store_scales(
    scales, byte, row, block, ROWS: tl.constexpr, LENGTH: tl.constexpr, WHOLE: tl.constexpr
):
    """Bytes (R, C) to (row, block) of (ROWS, LENGTH / 16), in tiles of 128 x 4.

    R divides 128, and C is a multiple of 4 or divides it: what follows is within one row of tiles.
    """
    TILES: tl.constexpr = LENGTH // 64
    row_of_tiles = row // 128 * 128
    rows = row - row_of_tiles + tl.arange(0, byte.shape[0])[:, None]
    blocks = block + tl.arange(0, byte.shape[1])[None, :]
    base = scales + (row // 128).to(tl.int64) * (TILES * 512)
    places = blocks // 4 * 512 + rows % 32 * 16 + rows // 32 * 4 + blocks % 4
    if WHOLE:
        tl.store(base + places, byte)
    else:
        of_tensor = rows < ROWS - row_of_tiles  # the last 16x16 block may have fewer rows
        inside = (rows < (ROWS + 127) // 128 * 128 - row_of_tiles) & (blocks < TILES * 4)
        tl.store(base + places, tl.where(of_tensor, byte, 0), mask=inside)

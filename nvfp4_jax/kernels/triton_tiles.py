"""How a program sees its tile: (G threads, N blocks, R rows, V columns), 16 = G * V.

R is 16 where blocks lie along rows. V columns of all R rows belong to one thread: a block along
rows, and the rotation of one, never leave their thread, and a block along columns is spread over
G neighbours. The four axes, in this order, are how we ask Triton for that layout: it gives a
thread the consecutive elements of the last axis, then hands out threads along the first axis that
is left, the second, and so on, and at last the rows.
"""

from __future__ import annotations

import triton
import triton.language as tl

from nvfp4_jax.kernels.triton_hadamard import rotate16


@triton.jit
def tile_origin(ROWS: tl.constexpr, COLUMNS: tl.constexpr, R: tl.constexpr, N: tl.constexpr):
    """(batch entry, first row, first column) of this program; columns vary fastest."""
    ACROSS: tl.constexpr = (COLUMNS + N * 16 - 1) // (N * 16)
    DOWN: tl.constexpr = (ROWS + R - 1) // R
    program = tl.program_id(0)
    along, down = program % ACROSS, program // ACROSS
    return down // DOWN, (down % DOWN) * R, along * (N * 16)


@triton.jit
def tile_places(R: tl.constexpr, N: tl.constexpr, G: tl.constexpr):
    """(row, column) within the tile, broadcasting to (G, N, R, V)."""
    V: tl.constexpr = 16 // G
    threads = tl.arange(0, G)[:, None, None, None]
    blocks = tl.arange(0, N)[None, :, None, None]
    rows = tl.arange(0, R)[None, None, :, None]
    return rows, blocks * 16 + threads * V + tl.arange(0, V)[None, None, None, :]


@triton.jit
def load_tile(
    x, batch, row, column,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, R: tl.constexpr, N: tl.constexpr,
    G: tl.constexpr, ROUND: tl.constexpr,
):  # fmt: skip
    """The tile in float32, zeros outside; ROUND: rounded to bf16 first."""
    rows, columns = tile_places(R, N, G)
    start = x + (batch.to(tl.int64) * ROWS + row) * COLUMNS + column
    places = start + (rows * COLUMNS + columns)
    if ROWS % R == 0 and COLUMNS % (N * 16) == 0:
        tile = tl.load(places)
    else:
        inside = (rows < ROWS - row) & (columns < COLUMNS - column)
        tile = tl.load(places, mask=inside, other=0.0)
    if ROUND:
        tile = tile.to(tl.bfloat16)
    return tile.to(tl.float32)


@triton.jit
def store_tile(
    out, tile, batch, row, column,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, R: tl.constexpr, N: tl.constexpr, G: tl.constexpr,
):  # fmt: skip
    """The part of the tile within (ROWS, COLUMNS), in the dtype of `out`."""
    rows, columns = tile_places(R, N, G)
    start = out + (batch.to(tl.int64) * ROWS + row) * COLUMNS + column
    places = start + (rows * COLUMNS + columns)
    if ROWS % R == 0 and COLUMNS % (N * 16) == 0:
        tl.store(places, tile.to(out.dtype.element_ty))
    else:
        inside = (rows < ROWS - row) & (columns < COLUMNS - column)
        tl.store(places, tile.to(out.dtype.element_ty), mask=inside)


@triton.jit
def rotate_tile(
    tile, signs, ALONG_ROWS: tl.constexpr, R: tl.constexpr, N: tl.constexpr, G: tl.constexpr
):
    """The random Hadamard transform of the tile's blocks, in float32."""
    V: tl.constexpr = 16 // G
    if ALONG_ROWS:
        groups = tile.permute(0, 1, 3, 2).reshape(G * N * V, 16)
        rotated = rotate16(groups, signs, G * N * V)
        return rotated.reshape(G, N, V, 16).permute(0, 1, 3, 2)
    groups = tile.permute(1, 2, 0, 3).reshape(N * R, 16)
    return rotate16(groups, signs, N * R).reshape(N, R, G, V).permute(2, 0, 1, 3)

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

from nvfp4_jax.kernels.triton_hadamard import butterflies16
from nvfp4_jax.kernels.triton_pairs import floats, rounded, truncated


@triton.jit
def tile_origin(ROWS: tl.constexpr, COLUMNS: tl.constexpr, R: tl.constexpr, N: tl.constexpr):
    """(batch entry, first row, first column) of this program; columns vary fastest."""
    return origin_of(tl.program_id(0), ROWS, COLUMNS, R, N)


@triton.jit
def origin_of(program, ROWS: tl.constexpr, COLUMNS: tl.constexpr, R: tl.constexpr, N: tl.constexpr):
    """The same of a program by its number."""
    ACROSS: tl.constexpr = (COLUMNS + N * 16 - 1) // (N * 16)
    DOWN: tl.constexpr = (ROWS + R - 1) // R
    along, down = program % ACROSS, program // ACROSS
    return down // DOWN, (down % DOWN) * R, along * (N * 16)


@triton.jit
def tile_places(R: tl.constexpr, N: tl.constexpr, G: tl.constexpr, V: tl.constexpr):
    """(row, column) within the tile, broadcasting to (G, N, R, V); V counts elements or words."""
    threads = tl.arange(0, G)[:, None, None, None]
    blocks = tl.arange(0, N)[None, :, None, None]
    rows = tl.arange(0, R)[None, None, :, None]
    return rows, blocks * (G * V) + threads * V + tl.arange(0, V)[None, None, None, :]


@triton.jit
def pointers(
    base, batch, row, column, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    R: tl.constexpr, N: tl.constexpr, G: tl.constexpr, V: tl.constexpr,
):  # fmt: skip
    """To the tile that begins at (row, column) of (ROWS, COLUMNS), and which of it is inside.

    Where no tile of the tensor is cut off that is a constant, which makes accesses unmasked.
    """
    rows, columns = tile_places(R, N, G, V)
    start = base + (batch.to(tl.int64) * ROWS + row) * COLUMNS + column
    if ROWS % R == 0 and COLUMNS % (N * G * V) == 0:
        inside = tl.full((1, 1, 1, 1), True, tl.int1)
    else:
        inside = (rows < ROWS - row) & (columns < COLUMNS - column)
    places = start + (rows * COLUMNS + columns)
    if V == 1:  # neighbours on the first axis are other threads', not more words for this one
        places = tl.max_contiguous(places, [1, 1, 1, 1])
    return places, inside


@triton.jit
def load_tile(
    x, batch, row, column,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, R: tl.constexpr, N: tl.constexpr,
    G: tl.constexpr, ROUND: tl.constexpr,
):  # fmt: skip
    """The tile as float32 and as words of bf16 with its signs; zeros outside.

    Of bf16, and of float32 rounded to it (ROUND), the words are the values.
    """
    V: tl.constexpr = 16 // G
    if x.dtype.element_ty == tl.bfloat16 and COLUMNS % 2 == 0:
        base = x.to(tl.pointer_type(tl.uint32))
        places, inside = pointers(
            base, batch, row, column // 2, ROWS, COLUMNS // 2, R, N, G, V // 2
        )
        words = tl.load(places, mask=inside, other=0)
        tile = floats(words)
    else:
        places, inside = pointers(x, batch, row, column, ROWS, COLUMNS, R, N, G, V)
        tile = tl.load(places, mask=inside, other=0.0).to(tl.float32)
        if ROUND:
            words = rounded(tile)
            tile = floats(words)
        else:
            words = truncated(tile)
    return tile, words


@triton.jit
def store_words(
    out, words, batch, row, column,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, R: tl.constexpr, N: tl.constexpr, G: tl.constexpr,
):  # fmt: skip
    """The part of the tile within (ROWS, COLUMNS)."""
    V: tl.constexpr = 16 // G
    if COLUMNS % 2 == 0:
        base = out.to(tl.pointer_type(tl.uint32))
        places, inside = pointers(
            base, batch, row, column // 2, ROWS, COLUMNS // 2, R, N, G, V // 2
        )
        tl.store(places, words, mask=inside)
    else:
        places, inside = pointers(out, batch, row, column, ROWS, COLUMNS, R, N, G, V)
        tl.store(places, floats(words).to(tl.bfloat16), mask=inside)


@triton.jit
def rotate_tile(
    tile, signs, ALONG_ROWS: tl.constexpr, R: tl.constexpr, N: tl.constexpr, G: tl.constexpr
):
    """`tile`, float32, times diag(signs) H along its blocks."""
    V: tl.constexpr = 16 // G
    if ALONG_ROWS:
        groups = tile.permute(0, 1, 3, 2).reshape(G * N * V, 16)
        rotated = butterflies16(groups, signs, G * N * V)
        return rotated.reshape(G, N, V, 16).permute(0, 1, 3, 2)
    groups = tile.permute(1, 2, 0, 3).reshape(N * R, 16)
    return butterflies16(groups, signs, N * R).reshape(N, R, G, V).permute(2, 0, 1, 3)

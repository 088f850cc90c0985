"""What the kernels of the scan have in common: tiles of tokens, decays and masks, on the device.

Tokens are counted within a chunk of CHUNK tokens, whose first has the number `first` in its row.
Two numbers a head and token are kept as (batch, heads, chunks * CHUNK), so that the vector of a
chunk is contiguous: `steps`, dt, and `decays`, l, the running sum of dt A within the chunk, in
units of log 2, for the hardware has exp2. The last chunk may be ragged: tokens beyond the row read
as zero, with dt = 0, so that they neither decay the state nor add to it.

A side of a tile is a power of two, and a head dim of 80 is not: padded to 128, it would take 1.6
times the products and the registers. So a tile along the head dim is in two parts, MAIN columns
and REST more (64 and 16), or in one (REST = 0, and the second stands for the first, unused).
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load_tile(base, first, LENGTH, STRIDE, WIDTH, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """(ROWS, COLUMNS): rows from `first`, STRIDE elements apart; zero outside (LENGTH, WIDTH)."""
    row = tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    inside = (first + row < LENGTH)[:, None] & (column < WIDTH)[None, :]
    return tl.load(base + row[:, None] * STRIDE + column[None, :], inside, 0.0)


@triton.jit
def store_tile(base, tile, first, LENGTH, STRIDE, WIDTH, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """The opposite of `load_tile`; rounds to the dtype of the array."""
    row = tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    inside = (first + row < LENGTH)[:, None] & (column < WIDTH)[None, :]
    target = base + row[:, None] * STRIDE + column[None, :]
    tl.store(target, tile.to(base.dtype.element_ty), inside)


@triton.jit
def load_parts(
    base,
    first,
    LENGTH,
    STRIDE,
    WIDTH,
    ROWS: tl.constexpr,
    MAIN: tl.constexpr,
    REST: tl.constexpr,
):
    """`load_tile` of MAIN + REST columns."""
    main = load_tile(base, first, LENGTH, STRIDE, WIDTH, ROWS, MAIN)
    rest = main
    if REST > 0:
        rest = load_tile(base + MAIN, first, LENGTH, STRIDE, WIDTH - MAIN, ROWS, REST)
    return main, rest


@triton.jit
def store_parts(
    base,
    main,
    rest,
    first,
    LENGTH,
    STRIDE,
    WIDTH,
    ROWS: tl.constexpr,
    MAIN: tl.constexpr,
    REST: tl.constexpr,
):
    """`store_tile` of MAIN + REST columns."""
    store_tile(base, main, first, LENGTH, STRIDE, WIDTH, ROWS, MAIN)
    if REST > 0:
        store_tile(base + MAIN, rest, first, LENGTH, STRIDE, WIDTH - MAIN, ROWS, REST)


@triton.jit
def product_over_parts(a_main, a_rest, b_main, b_rest, total, REST: tl.constexpr):
    """total + a b^T, contracting the head dim."""
    total = tl.dot(a_main, tl.trans(b_main), total, input_precision="ieee")
    if REST > 0:
        total = tl.dot(a_rest, tl.trans(b_rest), total, input_precision="ieee")
    return total


@triton.jit
def product_with_parts(a, b_main, b_rest, main, rest, REST: tl.constexpr):
    """(main, rest) + a b, the head dim in the result."""
    main = tl.dot(a, b_main, main, input_precision="ieee")
    rest = tl.dot(a, b_rest, rest, input_precision="ieee") if REST > 0 else main
    return main, rest


@triton.jit
def sum_over_parts(a_main, a_rest, b_main, b_rest, REST: tl.constexpr):
    """a . b of each row, in FP32."""
    total = tl.sum(a_main.to(tl.float32) * b_main.to(tl.float32), axis=1)
    if REST > 0:
        total += tl.sum(a_rest.to(tl.float32) * b_rest.to(tl.float32), axis=1)
    return total


@triton.jit
def zero_parts(ROWS: tl.constexpr, MAIN: tl.constexpr, REST: tl.constexpr):
    """FP32 zeros."""
    main = tl.zeros((ROWS, MAIN), tl.float32)
    rest = main
    if REST > 0:
        rest = tl.zeros((ROWS, REST), tl.float32)
    return main, rest


@triton.jit
def load_state(base, n0, P, N, ROWS: tl.constexpr, MAIN: tl.constexpr, REST: tl.constexpr):
    """(ROWS, head dim) from n0 on, transposed from an array of (P, N)."""
    main = _load_transposed(base, n0, P, N, ROWS, MAIN)
    rest = main
    if REST > 0:
        rest = _load_transposed(base + MAIN * N, n0, P - MAIN, N, ROWS, REST)
    return main, rest


@triton.jit
def _load_transposed(base, n0, P, N, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    n, p = n0 + tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    inside = (n < N)[:, None] & (p < P)[None, :]
    return tl.load(base + p[None, :] * N + n[:, None], inside, 0.0)


@triton.jit
def store_state(
    base, main, rest, n0, P, N, ROWS: tl.constexpr, MAIN: tl.constexpr, REST: tl.constexpr
):
    """The opposite of `load_state`."""
    _store_transposed(base, main, n0, P, N, ROWS, MAIN)
    if REST > 0:
        _store_transposed(base + MAIN * N, rest, n0, P - MAIN, N, ROWS, REST)


@triton.jit
def _store_transposed(base, tile, n0, P, N, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    n, p = n0 + tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    inside = (n < N)[:, None] & (p < P)[None, :]
    tl.store(base + p[None, :] * N + n[:, None], tile, inside)


@triton.jit
def document_before(seq_idx, row, first):
    """The document of the state that a chunk starts with: that of the token before it."""
    return tl.load(seq_idx + row + tl.maximum(first - 1, 0))


@triton.jit
def document_after(seq_idx, row, first, LENGTH, CHUNK: tl.constexpr):
    """The document of a chunk's last token, whose state is handed on."""
    return tl.load(seq_idx + row + tl.minimum(first + CHUNK, LENGTH) - 1)


@triton.jit
def documents(seq_idx, row, tokens, LENGTH):
    """The document of each of `tokens`; of no matter for those beyond the row, which are zero."""
    return tl.load(seq_idx + row + tokens, tokens < LENGTH, 0)


@triton.jit
def from_start(l_t, tokens, seq_idx, row, first, LENGTH, PACKED: tl.constexpr):
    """exp(l): what a token sees of the state at the chunk's start, 0 in another document."""
    factor = tl.exp2(l_t)
    if PACKED:
        same = documents(seq_idx, row, tokens, LENGTH) == document_before(seq_idx, row, first)
        factor = tl.where(same, factor, 0.0)
    return factor


@triton.jit
def to_end(
    l_t, l_end, tokens, seq_idx, row, first, LENGTH, CHUNK: tl.constexpr, PACKED: tl.constexpr
):
    """exp(l_end - l): what is left of a token at the chunk's end, 0 in another document."""
    factor = tl.exp2(l_end - l_t)
    if PACKED:
        last = document_after(seq_idx, row, first, LENGTH, CHUNK)
        factor = tl.where(documents(seq_idx, row, tokens, LENGTH) == last, factor, 0.0)
    return factor


@triton.jit
def survival(l_end, seq_idx, row, first, LENGTH, CHUNK: tl.constexpr, PACKED: tl.constexpr):
    """exp(l_end): the factor by which a chunk shrinks the state it starts with."""
    factor = tl.exp2(l_end)
    if PACKED:
        last = document_after(seq_idx, row, first, LENGTH, CHUNK)
        factor = tl.where(last == document_before(seq_idx, row, first), factor, 0.0)
    return factor


@triton.jit
def masked(
    matrix,
    rows,
    columns,
    seq_idx,
    row,
    LENGTH,
    PACKED: tl.constexpr,
    REVERSED: tl.constexpr,
    STRICT: tl.constexpr,
):
    """0 but where one token sees the other: the row's token the column's; reversed, it is seen.

    Strict: a token does not see itself.
    """
    gap = columns[None, :] - rows[:, None] if REVERSED else rows[:, None] - columns[None, :]
    allowed = gap > 0 if STRICT else gap >= 0
    if PACKED:
        mine = documents(seq_idx, row, rows, LENGTH)
        allowed = allowed & (mine[:, None] == documents(seq_idx, row, columns, LENGTH)[None, :])
    return tl.where(allowed, matrix, 0.0)


@triton.jit
def between(l_query, l_key):
    """exp(l_q - l_k), bounded where q comes before k: there it would overflow, and times 0, NaN.

    What it is multiplied with is 0, or is made so later, where q does not see k.
    """
    return tl.exp2(tl.minimum(l_query - l_key, 64.0))

"""Philox4x32-10 in Triton: the generator of `nvfp4_jax.philox`, for use inside a kernel.

One call gives 128 random bits, which serve E = 128 / bits neighbouring columns. The calls of a
tile are computed as a tensor of their own, one element a call, and their words are then spread
over the columns: to repeat a call for each element that it serves would cost sixteen times as much.

    counter = (column // E, row low, row high, stream)      row high and stream are zero here

Products are 64 bits wide, one `mul.wide.u32` for both halves.
"""

from __future__ import annotations

import triton
import triton.language as tl

from nvfp4_jax.kernels.triton_assembly import permute_bytes


@triton.jit
def _products(a, m: tl.constexpr):
    """(upper, lower) 32 bits of a * m."""
    product = a.to(tl.uint64) * m
    return (product >> 32).to(tl.uint32), product.to(tl.uint32)


@triton.jit
def philox4x32(c0, c1, c2, c3, k0, k1):
    """Ten rounds on uint32 tensors that broadcast together.

    They are broadcast as late as possible: with c2 = c3 = 0 the first round is done once a row
    and once a column.
    """
    for _ in tl.static_range(10):
        high0, low0 = _products(c0, 0xD2511F53)
        high1, low1 = _products(c2, 0xCD9E8D57)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0 += 0x9E3779B9
        k1 += 0xBB67AE85
    return c0, c1, c2, c3


@triton.jit
def random_words(key, row, column, BITS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """The words of a tile of (ROWS, COLUMNS) elements, each for 32 / BITS neighbouring columns.

    `row` and `column` are the place of the tile's first element in the whole tensor; `column` is a
    multiple of 16, and so is COLUMNS. `key` points to two words.
    """
    E: tl.constexpr = 128 // BITS
    CALLS: tl.constexpr = COLUMNS // E
    rows = (row + tl.arange(0, ROWS).to(tl.uint32))[:, None]
    calls = (column // E + tl.arange(0, CALLS).to(tl.uint32))[None, :]
    zero = tl.zeros((1, 1), tl.uint32)
    w0, w1, w2, w3 = philox4x32(calls, rows, zero, zero, tl.load(key), tl.load(key + 1))
    return tl.join(tl.join(w0, w2), tl.join(w1, w3)).reshape(ROWS, CALLS * 4)


@triton.jit
def random_fractions(
    key, row, column, BITS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    """u 2^-125 with u = r / 2^BITS uniform in [0, 1), float32 of shape (ROWS, COLUMNS).

    The arguments are those of `random_words`; of 32 bits the top 24 are used.

    That takes no conversion: a float whose bits are k < 2^24 is k 2^-149, subnormal or not. So one
    permutation puts a byte, or two, in the upper two bytes of the lower three.
    """
    words = random_words(key, row, column, BITS, ROWS, COLUMNS)
    PER_WORD: tl.constexpr = 32 // BITS
    if BITS == 32:
        fractions = words >> 8
    else:
        j = tl.arange(0, PER_WORD)[None, None, :]
        selector = 0x4044 + 0x100 * j if BITS == 8 else 0x4104 + 0x220 * j
        fractions = permute_bytes(words[:, :, None], 0, selector.to(tl.uint32))
    return fractions.to(tl.float32, bitcast=True).reshape(ROWS, COLUMNS)

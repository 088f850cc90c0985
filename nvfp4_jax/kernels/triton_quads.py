"""Four neighbours along the contraction as four E2M1 codes: a quad, 16 bits.

A tile is (G, N, 16, V), blocks of 16 rows by 16 columns, V columns of all rows a thread's. A quad
is four columns of a row, or four rows of a column; they are listed row by row, or column by
column, as (G, N, 16 * V / 4).

With HARDWARE the rounding is an instruction of Blackwell's (`triton_casts`), which for random
bits takes a word of four bytes; those of four rows have to be gathered from four words, one a row.
Without it, and for 16 or 32 random bits, it is the arithmetic of `triton_rounding`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from nvfp4_jax.kernels.triton_assembly import permute_bytes
from nvfp4_jax.kernels.triton_casts import nearest_quad, stochastic_quad
from nvfp4_jax.kernels.triton_codes import encode_e2m1
from nvfp4_jax.kernels.triton_philox import random_fractions, random_words
from nvfp4_jax.kernels.triton_rounding import nearest_e2m1, stochastic_e2m1, with_sign_of


@triton.jit
def quads(
    scaled, key, first_row, first_column,
    ALONG_ROWS: tl.constexpr, BITS: tl.constexpr, HARDWARE: tl.constexpr,
    B: tl.constexpr, N: tl.constexpr, G: tl.constexpr,
):  # fmt: skip
    """A tile of elements times their multipliers as codes, 16 bits in a word each.

    The tile has B * N blocks, B below each other and N beside each other, and begins at
    (first_row, first_column) of the whole tensor.
    """
    if HARDWARE and BITS == 0:
        v0, v1, v2, v3 = _fours(scaled, ALONG_ROWS)
        codes = nearest_quad(v0, v1, v2, v3)
    elif HARDWARE and BITS == 8:
        words = random_words(key, first_row, first_column, BITS, B * 16, N * 16)
        v0, v1, v2, v3 = _fours(scaled, ALONG_ROWS)
        codes = stochastic_quad(v0, v1, v2, v3, _words_of_quads(words, ALONG_ROWS, B, N, G))
    else:
        a = tl.abs(scaled)
        if BITS == 0:
            a = nearest_e2m1(a)
        else:
            random = random_fractions(key, first_row, first_column, BITS, B * 16, N * 16)
            a = stochastic_e2m1(a, folded(random, 16, B, N, G))
        nibbles = encode_e2m1(with_sign_of(tl.minimum(a, 6.0), scaled))
        c0, c1, c2, c3 = _fours(nibbles, ALONG_ROWS)
        codes = c0 | (c1 << 4) | (c2 << 8) | (c3 << 12)
    return codes


@triton.jit
def folded(tile, WIDTH: tl.constexpr, B: tl.constexpr, N: tl.constexpr, G: tl.constexpr):
    """(B * 16, N * WIDTH) as (G, B * N, 16, WIDTH / G)."""
    V: tl.constexpr = WIDTH // G
    return tile.reshape(B, 16, N, G, V).permute(3, 0, 2, 1, 4).reshape(G, B * N, 16, V)


@triton.jit
def _fours(tile, ALONG_ROWS: tl.constexpr):
    """The first, second, third and fourth of every four, each (G, N, 16 * V / 4)."""
    if ALONG_ROWS:
        tile = tile.permute(0, 1, 3, 2)
    G: tl.constexpr = tile.shape[0]
    N: tl.constexpr = tile.shape[1]
    Q: tl.constexpr = tile.shape[2] * tile.shape[3] // 4
    even, odd = tl.split(tile.reshape(G, N, 2 * Q, 2))
    first, third = tl.split(even.reshape(G, N, Q, 2))
    second, fourth = tl.split(odd.reshape(G, N, Q, 2))
    return first, second, third, fourth


@triton.jit
def _words_of_quads(
    words, ALONG_ROWS: tl.constexpr, B: tl.constexpr, N: tl.constexpr, G: tl.constexpr
):
    """The four random bytes of every quad, from words for four neighbouring columns of a row."""
    if ALONG_ROWS:
        tl.static_assert(G == 4, "a thread that has a block along rows has four columns of it")
        a, b, c, d = _fours(folded(words, 4, B, N, G), True)
        upper = tl.join(permute_bytes(a, b, 0x5140), permute_bytes(a, b, 0x7362))
        lower = tl.join(permute_bytes(c, d, 0x5140), permute_bytes(c, d, 0x7362))
        even, odd = permute_bytes(upper, lower, 0x5410), permute_bytes(upper, lower, 0x7632)
        four = tl.join(even, odd).reshape(G, B * N, 4, 4).permute(0, 1, 3, 2)
    else:
        four = folded(words, 4, B, N, G)
    return four.reshape(G, B * N, 64 // G)

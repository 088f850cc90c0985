"""A kernel that stores what a quantizer would draw."""

from __future__ import annotations

import triton
import triton.language as tl

from nvfp4_jax.kernels.triton_philox import philox4x32, random_fractions


@triton.jit
def words_kernel(counter, key, out, N: tl.constexpr):
    """out (4, N) of counter (4, N)."""
    n = tl.arange(0, N)
    c = (tl.load(counter + n), tl.load(counter + N + n), tl.load(counter + 2 * N + n))
    words = philox4x32(
        c[0], c[1], c[2], tl.load(counter + 3 * N + n), tl.load(key), tl.load(key + 1)
    )
    for i in tl.static_range(4):
        tl.store(out + i * N + n, words[i])


@triton.jit
def fractions_kernel(
    place, key, out, BITS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    """out (ROWS, COLUMNS) of a tile that begins at `place`, (row, column)."""
    values = random_fractions(key, tl.load(place), tl.load(place + 1), BITS, ROWS, COLUMNS)
    to = tl.arange(0, ROWS)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    tl.store(out + to, values)

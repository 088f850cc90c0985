"""relu(u)^2, or its gradient, and the largest magnitudes of the result, from one pass.

What comes next quantizes the result, and wants its largest magnitude first: of itself, and of its
rotation over 16 tokens. A program that has just computed a tile of 16 rows has all that this
takes in registers. The arithmetic is the model's own: in float32, rounded once to bf16; and the
magnitudes are those of what was rounded, as `triton_amax` finds them.

Tiles are taken from the tensor's end, as there: what the quantizer reads first is written last.
"""

from __future__ import annotations

import triton
import triton.language as tl

from nvfp4_jax.kernels.triton_amax import tile_amax
from nvfp4_jax.kernels.triton_pairs import floats, rounded
from nvfp4_jax.kernels.triton_tiles import load_tile, origin_of, store_words


@triton.jit
def relu_squared_kernel(
    u, dr, signs, out, amax,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, R: tl.constexpr, N: tl.constexpr, G: tl.constexpr,
    GRADIENT: tl.constexpr, RHT0: tl.constexpr, ALONG_ROWS0: tl.constexpr,
    RHT1: tl.constexpr, ALONG_ROWS1: tl.constexpr, COPIES: tl.constexpr,
):  # fmt: skip
    """r = relu(u)^2 or, with GRADIENT, du = 2 relu(u) dr; and the amax of each of its copies."""
    from_the_end = tl.num_programs(0) - 1 - tl.program_id(0)
    batch, row, column = origin_of(from_the_end, ROWS, COLUMNS, R, N)
    tile, _ = load_tile(u, batch, row, column, ROWS, COLUMNS, R, N, G, False)
    tile = tl.where(tile <= 0, 0.0, tile)  # NaN stays
    if GRADIENT:
        slope, _ = load_tile(dr, batch, row, column, ROWS, COLUMNS, R, N, G, False)
        words = rounded(2 * tile * slope)
    else:
        words = rounded(tile * tile)
    store_words(out, words, batch, row, column, ROWS, COLUMNS, R, N, G)
    result = floats(words)
    first = tile_amax(result, signs, RHT0, ALONG_ROWS0, True, R, N, G)
    tl.atomic_max(amax, first, sem="relaxed")
    if COPIES == 2:
        second = tile_amax(result, signs, RHT1, ALONG_ROWS1, True, R, N, G)
        tl.atomic_max(amax + 1, second, sem="relaxed")

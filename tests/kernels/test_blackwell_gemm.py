"""Launching the Blackwell GEMM: which problems, in which tiles, in how much memory."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import mosaic_gpu as plgpu

from nvfp4_jax.kernels.blackwell_gemm import block_scaled_matmul, unsupported
from nvfp4_jax.kernels.blackwell_gemm_tiling import (
    STRIPE,
    TILINGS,
    TMEM_COLUMNS,
    Problem,
    tiling_for,
)
from tests.gpu_compile import in_process_of, instructions, with_opcode
from tests.kernels import blackwell_gemm_programs as programs

SHARED_BYTES = 227 * 1024  # of a block on sm_100 and sm_103 (CUDA programming guide)
BF16, F32 = np.dtype(jnp.bfloat16), np.dtype(np.float32)


@pytest.mark.parametrize("tiling", TILINGS)
@pytest.mark.parametrize("dtype", [BF16, F32])
def test_a_tiling_fits(tiling, dtype):
    """Sums of two tiles and scales in tensor memory; the ring, the staging and 2 KiB more."""
    problem = Problem.of(8192, 8192, 8192, dtype)
    barriers_and_scratch = 2048 + 1024
    needed = tiling.stages * tiling.stage_bytes() + tiling.staging_bytes() + barriers_and_scratch
    assert needed <= SHARED_BYTES
    assert tiling.stages >= 4
    assert tiling.second + tiling.n + tiling.scale_columns <= TMEM_COLUMNS
    assert tiling.chunks(problem) % 2 == 0  # buffers of the staging alternate across tiles


@pytest.mark.parametrize("tiling", TILINGS)
@pytest.mark.parametrize("dtype", [BF16, F32])
def test_stores_cover_a_tile_and_begin_with_what_the_next_tile_overwrites(tiling, dtype):
    problem = Problem.of(8192, 8192, 8192, dtype)
    width = problem.store_columns
    for slot in (0, 1):
        order = [tiling.chunk(problem, slot, i) for i in range(tiling.chunks(problem))]
        assert sorted(order) == list(range(tiling.n // width))
        read = {
            slot * tiling.second + chunk * width + column
            for chunk in order[: tiling.released_after(problem) + 1]
            for column in range(width)
        }
        if tiling.overlap:
            assert read >= set(range(tiling.second, tiling.n))
        else:
            assert len(read) == tiling.n


RAGGED = [(1, 1), (8, 72), (129, 257), (4096, 4097), (8192, 22656), (22656, 5120), (200, 3001)]


@pytest.mark.parametrize("shape", RAGGED)
@pytest.mark.parametrize("tiling", TILINGS)
def test_every_output_tile_is_visited_once(shape, tiling):
    problem = Problem.of(*shape, 64, BF16)
    rows, columns = tiling.grid(problem)
    order = jax.vmap(lambda i: jnp.stack(plgpu.planar_snake(i, (rows, columns), 1, STRIPE)))
    visited = np.asarray(order(jnp.arange(rows * columns)))
    assert len(np.unique(visited, axis=0)) == rows * columns
    assert (visited.min(0) >= 0).all()
    assert (visited.max(0) == (rows - 1, columns - 1)).all()
    assert rows * tiling.m >= problem.m > (rows - 1) * tiling.m
    assert columns * tiling.n >= problem.n > (columns - 1) * tiling.n


# Of the 12B, 8192 tokens on the 148 SMs of a B200: out of Fprop, Dgrad and Wgrad.
LAYERS = [(5120, 20480), (20480, 5120), (5120, 22656), (10240, 5120)]
PRODUCTS = [
    shape
    for width, out in LAYERS
    for shape in [(8192, out, width), (8192, width, out), (out, width, 8192)]
]


@pytest.mark.parametrize("shape", PRODUCTS)
def test_the_products_of_the_12b_take_pairs(shape):
    tiling = tiling_for(Problem.of(*shape, BF16), 148)
    assert (tiling.ctas, tiling.n) == (2, 256)


CHOSEN = {  # (m, n): (CTAs, columns) on 148 SMs
    (8192, 8192): (2, 256),  # 14 waves of 74 pairs
    (2048, 2048): (2, 256),  # one wave: 64 of 74 pairs
    (1024, 2304): (2, 128),  # one wave of 72 pairs, where the widest would leave half of them idle
    (128, 18944): (1, 128),  # one wave of 148 SMs, where pairs would half be idle in two
    (128, 128): (2, 128),  # one tile: the half of a pair that it does not fill costs nothing
}


@pytest.mark.parametrize("shape", CHOSEN)
def test_tiles_are_as_large_as_the_last_wave_allows(shape):
    tiling = tiling_for(Problem.of(*shape, 4096, BF16), 148)
    assert (tiling.ctas, tiling.n) == CHOSEN[shape]


@pytest.mark.parametrize(
    ("shape", "dtype"), [((100, 72, 64), "bfloat16"), ((129, 1000, 320), "float32")]
)
def test_ragged_sizes_keep_their_shape(shape, dtype):
    """Padded before the kernel and sliced after it, in this one program."""
    out_shape, out_dtype, hlo = in_process_of("b200", programs.ragged, shape, dtype)
    assert (out_shape, out_dtype) == (shape[:2], dtype)
    assert products(hlo) == 1


def products(hlo: str) -> int:
    return len(with_opcode(instructions(hlo), "custom-call"))


def test_it_compiles_inside_scan_and_checkpoint():
    assert products(in_process_of("b200", programs.scanned)) == 1


@pytest.mark.parametrize("scalars", [0, 1])
def test_fewer_scalars_compile(scalars):
    assert products(in_process_of("b200", programs.with_scalars, scalars)) == 1


@pytest.mark.parametrize("columns", [1, 64, 65, 128])
def test_an_output_is_never_one_store_wide(columns):
    """Mosaic would drop the axis of stores, and with it TMA's check of bounds."""
    for dtype in (BF16, F32):
        problem = Problem.of(64, columns, 64, dtype)
        assert problem.n >= max(columns, 2 * problem.store_columns)
        assert problem.n % problem.store_columns == 0


REASONS = {
    "tensor memory": {"compute_capability": (12, 0)},
    "data-center": {"compute_capability": None},
    "float16": {"dtype": jnp.float16},
    "of 0 elements": {"shape": (0, 256, 256)},
    "multiple of 64": {"shape": (256, 256, 100)},
}
USUAL = {"shape": (256, 256, 256), "dtype": jnp.bfloat16, "compute_capability": (10, 0)}


def test_the_usual_product_is_supported():
    assert unsupported(**USUAL) is None
    assert unsupported(**USUAL | {"compute_capability": (10, 3)}) is None


@pytest.mark.parametrize("word", REASONS)
def test_what_is_not_supported_has_a_reason(word):
    assert word in (unsupported(**USUAL | REASONS[word]) or "")


@pytest.mark.parametrize("name", ["a", "b"])
@pytest.mark.parametrize("which", ["codes", "block scales"])
def test_operands_of_another_shape_raise(name, which):
    made = [jnp.zeros(a.shape, a.dtype) for a in programs.arguments(256, 256, 256)[:4]]
    wrong = 2 * (name == "b") + (which == "block scales")
    made[wrong] = made[wrong][:, :1]
    with pytest.raises(ValueError, match=f"{name}: {which} are"):
        block_scaled_matmul(*made, (256, 256, 256))


def test_an_unsupported_product_raises_with_shape_and_reason():
    made = [jnp.zeros(a.shape, a.dtype) for a in programs.arguments(256, 256, 256)[:4]]
    with pytest.raises(ValueError, match=r"\(256, 256, 100\): .*multiple of 64"):
        block_scaled_matmul(*made, (256, 256, 100))

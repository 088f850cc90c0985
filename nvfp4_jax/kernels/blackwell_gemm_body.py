"""The body of the Blackwell GEMM: one warp loads, one multiplies, and a warpgroup stores.

A persistent kernel. Each SM, or pair of them, walks over output tiles in an order that keeps
operands in L2. The loading warp copies codes and block scales into a ring of shared-memory stages
(TMA). The multiplying warp moves the scales of a stage to tensor memory (UTCCP) and multiplies
(UTCOMMA: E2M1 codes from shared memory, E4M3 scales and FP32 sums in tensor memory). The storing
warpgroup reads finished sums, multiplies them with the tensor scales, rounds them once and stores
them through a small staging buffer (TMA). All three run on across output tiles.

Four kinds of barriers: `full` (all four copies of a stage have arrived), `empty` (the products that
read a stage are done), `multiplied` (the sums of a tile are complete) and `drained` (so much of a
tile has been read that the next one which needs its columns may start).

In a pair, each CTA holds 128 rows of a and of the sums and half of the rows of b, with the scales
of its rows of a and of *all* rows of b, since it multiplies with all of them. The first CTA leads:
it alone waits for `full`, which counts the bytes that arrive in both, and issues the instructions
of both (`cta_group::2`); they report to the barriers of both.

Scales of the next step overwrite those of this one in tensor memory while products that read them
may be under way: copies and products of one thread run in the order in which they are issued, on
which CUTLASS relies in the same place.
"""

from __future__ import annotations

from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from nvfp4_jax.kernels.blackwell_gemm_tiling import (
    BLOCK,
    LANES,
    SCALES_K,
    STAGING,
    STEP_K,
    STORE_ROW,
    STRIPE,
    Problem,
    Tiling,
)

_ISSUE, _STORE = 0, 1  # warpgroups
_LOADING, _MULTIPLYING = 0, 1  # warps of the first of them
_K_TILES = STEP_K // SCALES_K  # tiles of scales along k in a stage
SCALES_TILE = (2, 256)  # a 512-byte tile of scales as TMA copies it: few long rows


class _Scratch(NamedTuple):
    """Memory and barriers of a CTA; the first six are shared memory, then tensor memory."""

    a: Any
    b: Any
    a_scale: Any
    b_scale: Any
    staging: Any
    sums: Any
    a_scale_tmem: Any
    b_scale_tmem: Any
    full: Any
    empty: Any
    multiplied: Any
    drained: Any


@cache  # one object a kernel, by which `lowered_once` knows it
def gemm_kernel(problem: Problem, tiling: Tiling, scalars: int, sm_count: int):
    """The compiled-on-call function (a, b, a_scale, b_scale, *scalars of shape (1,)) -> output.

    a and b are float4_e2m1fn, (rows, k); their scales (ceil(rows / 128), k / 64, *SCALES_TILE).
    """
    return plgpu.kernel(
        partial(_body, problem, tiling, scalars),
        out_type=jax.ShapeDtypeStruct((problem.m, problem.n), problem.dtype),
        scratch_types=_scratch(problem, tiling),
        grid=(sm_count // tiling.ctas,),
        grid_names=("grid",),
        cluster=(tiling.ctas,),
        cluster_names=("cta",),
        num_threads=2,
        thread_name="warpgroup",
        kernel_name="block_scaled_matmul",
        compiler_params=plgpu.CompilerParams(lowering_semantics=plgpu.LoweringSemantics.Warpgroup),
    )


def _scratch(problem: Problem, tiling: Tiling) -> dict[str, Any]:
    codes, scale = jnp.float4_e2m1fn, jnp.float8_e4m3fn
    pair, stages = tiling.ctas == 2, tiling.stages
    scales = partial(
        plgpu.TMEM, dtype=scale, layout=plgpu.TMEMLayout.SCALES_LAYOUT, collective=pair
    )
    barrier = partial(plgpu.Barrier, num_arrivals=1, orders_tensor_core=True)
    # 32 rows of 16 bytes of a tile of scales, in two dimensions: TMA sees two rows of 256.
    scale_tile = (_K_TILES, 2, 16, 16)
    return _Scratch(
        a=_swizzled((stages, LANES, STEP_K), codes, 4),
        b=_swizzled((stages, tiling.own_n, STEP_K), codes, 4),
        a_scale=plgpu.SMEM((stages, 1, *scale_tile), scale),
        b_scale=plgpu.SMEM((stages, tiling.n // LANES, *scale_tile), scale),
        staging=_swizzled(
            (STAGING, LANES, problem.store_columns), problem.dtype, 8 * problem.dtype.itemsize
        ),
        sums=plgpu.TMEM((LANES, tiling.second + tiling.n), jnp.float32, collective=pair),
        a_scale_tmem=scales((LANES, STEP_K // BLOCK)),
        b_scale_tmem=scales((tiling.n, STEP_K // BLOCK)),
        full=plgpu.Barrier(num_arrivals=4, num_barriers=stages),
        empty=barrier(num_barriers=stages),
        multiplied=barrier(num_barriers=2),
        drained=_drained(tiling),
    )._asdict()


def _swizzled(shape: tuple[int, ...], dtype, bits: int):
    """Shared memory as TMA and the tensor core read it: rows of 128 bytes, without conflicts."""
    tile = plgpu.TilingTransform((8, 8 * STORE_ROW // bits))  # pyright: ignore[reportAbstractUsage]
    swizzle = plgpu.SwizzleTransform(STORE_ROW)  # pyright: ignore[reportAbstractUsage]
    return plgpu.SMEM(shape, dtype, transforms=(tile, swizzle))


def _drained(tiling: Tiling):
    """The leader multiplies for both CTAs, so it waits until both have read their sums."""
    settings = {"num_arrivals": 1, "num_barriers": 2, "orders_tensor_core": True}
    if tiling.ctas == 1:
        return plgpu.Barrier(**settings)
    return plgpu.ClusterBarrier(collective_axes=("cta",), leader_tracked=True, **settings)


def _body(problem, tiling, scalars, a, b, a_scale, b_scale, /, *rest, **scratch):
    scalar_refs, out = rest[:scalars], rest[scalars]
    shared = _Scratch(**scratch)
    warpgroup = lax.axis_index("warpgroup")

    @pl.when(warpgroup == _ISSUE)
    def _():
        @plgpu.warp_map
        def _(warp):
            @pl.when(warp == _LOADING)
            def _():
                _load(problem, tiling, shared, a, b, a_scale, b_scale)

            @pl.when(jnp.logical_and(warp == _MULTIPLYING, lax.axis_index("cta") == 0))
            def _():
                _multiply(problem, tiling, shared)

    @pl.when(warpgroup == _STORE)
    def _():
        _store(problem, tiling, shared, [scalar[0] for scalar in scalar_refs], out)
        plgpu.wait_smem_to_gmem(0, wait_read_only=True)


def _output_tiles(problem, tiling, body):
    """`body(row, column, tile, step)` for each tile: which it is, and how many came before it.

    Returns:
      How many tiles there were, and how many steps.
    """
    rows, columns = tiling.grid(problem)

    def visit(loop, carry):
        tile, step = carry
        row, column = plgpu.planar_snake(loop.index[0], (rows, columns), 1, STRIPE)
        body(row, column, tile, step)
        return tile + 1, step + problem.steps

    start = jnp.int32(0), jnp.int32(0)
    return plgpu.nd_loop((rows * columns,), collective_axes="grid", init_carry=start)(visit)


def _load(problem, tiling, shared, a, b, a_scale, b_scale):
    """Fill each stage as soon as the products that read what it held before are done."""
    halves, both = _shares(tiling)
    b_tiles = tiling.n // LANES

    def load_tile(row, column, tile, first):
        a_rows, b_rows = pl.ds(row * tiling.m, tiling.m), pl.ds(column * tiling.n, tiling.n)
        a_tiles, b_scales = pl.ds(row * tiling.ctas, tiling.ctas), pl.ds(column * b_tiles, b_tiles)

        @pl.loop(0, problem.steps)
        def _(i):
            step = first + i
            stage = lax.rem(step, tiling.stages)

            @pl.when(step >= tiling.stages)
            def _():
                plgpu.barrier_wait(shared.empty.at[stage])

            def copy(source, target, share):
                plgpu.copy_gmem_to_smem(source, target, shared.full.at[stage], **share)

            k, scales_k = pl.ds(i * STEP_K, STEP_K), pl.ds(i * _K_TILES, _K_TILES)
            copy(a.at[a_rows, k], shared.a.at[stage], halves)
            copy(b.at[b_rows, k], shared.b.at[stage], halves)
            to_a = shared.a_scale.at[stage].reshape(1, _K_TILES, *SCALES_TILE)
            to_b = shared.b_scale.at[stage].reshape(b_tiles, _K_TILES, *SCALES_TILE)
            copy(a_scale.at[a_tiles, scales_k], to_a, halves)
            copy(b_scale.at[b_scales, scales_k], to_b, both)

    _, steps = _output_tiles(problem, tiling, load_tile)

    # A CTA must outlive what its neighbour still reads from or signals to it.
    @pl.loop(jnp.maximum(steps - tiling.stages, 0), steps)
    def _(step):
        plgpu.barrier_wait(shared.empty.at[lax.rem(step, tiling.stages)])


def _shares(tiling: Tiling) -> tuple[dict[str, Any], dict[str, Any]]:
    """How a pair copies what each CTA holds half of, and what both hold whole."""
    if tiling.ctas == 1:
        return {}, {}
    halves, both = plgpu.CopyPartition.PARTITIONED(0), plgpu.CopyPartition.REPLICATED
    return (
        {"collective_axes": "cta", "leader_tracked": halves},
        {"collective_axes": "cta", "leader_tracked": both},
    )


def _multiply(problem, tiling, shared):
    """Run by one warp of the leading CTA, whose first lane issues."""
    axis = "cta" if tiling.ctas == 2 else None

    def scales_to_tmem(ring, stage, target):
        tile = ring.at[stage].reshape(ring.shape[1], _K_TILES, 32, 16)
        plgpu.async_copy_scales_to_tmem(tile, target, collective_axis=axis)

    def multiply_tile(row, column, tile, first):
        slot = lax.rem(tile, 2)
        sums = shared.sums.at[:, pl.ds(slot * tiling.second, tiling.n)]

        @pl.when(tile >= tiling.lag)
        def _():
            plgpu.barrier_wait(shared.drained.at[lax.rem(tile + tiling.lag, 2)])

        @pl.loop(0, problem.steps)
        def _(i):
            stage = lax.rem(first + i, tiling.stages)
            plgpu.barrier_wait(shared.full.at[stage])
            scales_to_tmem(shared.a_scale, stage, shared.a_scale_tmem)
            scales_to_tmem(shared.b_scale, stage, shared.b_scale_tmem)
            plgpu.tcgen05_mma(
                sums,
                shared.a.at[stage],
                shared.b.at[stage].transpose((1, 0)),
                shared.empty.at[stage],
                a_scale=shared.a_scale_tmem,
                b_scale=shared.b_scale_tmem,
                accumulate=i > 0,
                collective_axis=axis,
            )

        plgpu.tcgen05_commit_arrive(shared.multiplied.at[slot], collective_axis=axis)

    tiles, _ = _output_tiles(problem, tiling, multiply_tile)

    @pl.loop(jnp.maximum(tiles - tiling.lag, 0), tiles)
    def _(tile):
        plgpu.barrier_wait(shared.drained.at[lax.rem(tile, 2)])


def _store(problem, tiling, shared, scalars, out):
    """Tensor memory to device memory, without waiting for the end of a store."""
    width = problem.store_columns

    def store_tile(row, column, tile, first):
        slot = lax.rem(tile, 2)
        plgpu.barrier_wait(shared.multiplied.at[slot])
        own_row = row * tiling.ctas + lax.axis_index("cta")
        rows = pl.ds(own_row * LANES, LANES)
        for i in range(tiling.chunks(problem)):
            start = tiling.chunk(problem, slot, i) * width
            sums = shared.sums.at[:, pl.ds(slot * tiling.second + start, width)]
            values = plgpu.async_load_tmem(sums)
            plgpu.wait_load_tmem()
            if i == tiling.released_after(problem):
                plgpu.barrier_arrive(shared.drained.at[slot])
            for scalar in scalars:
                values = values * scalar
            # The other buffer may still be read; before the first store, this one may be as well.
            plgpu.wait_smem_to_gmem(1, wait_read_only=True)
            staging = shared.staging.at[i % STAGING]
            staging[...] = values.astype(out.dtype)
            plgpu.commit_smem()
            plgpu.copy_smem_to_gmem(staging, out.at[rows, pl.ds(column * tiling.n + start, width)])

    _output_tiles(problem, tiling, store_tile)

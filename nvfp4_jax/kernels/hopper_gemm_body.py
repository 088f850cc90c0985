"""The body of the Hopper GEMM: one producer and two consumer warpgroups on every SM.

A persistent kernel. Each cluster walks over output tiles in an order that keeps operands in L2.
The producer warpgroup copies operand tiles into a ring of shared-memory stages (TMA); the consumers
multiply (wgmma, bf16 in, FP32 sums in registers), scale the sums in registers, round them once and
store them through a small staging buffer (TMA again). The ring runs on across output tiles, so
while consumers scale and store one tile, the operands of the next one already arrive.

Every stage has two barriers: `full` (both operands have arrived) and `empty` (all consumers that
read it are done). Two CTAs of a cluster compute neighbouring tiles and share one operand: each
loads a half of it and multicasts it to both, so a stage is empty only when both are done with it.
"""

from __future__ import annotations

from functools import cache, partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from nvfp4_jax.kernels.hopper_gemm_tiling import (
    CLUSTER,
    CONSUMERS,
    STRIPE,
    TILE_K,
    TILE_M,
    Problem,
    Tiling,
)

_PRODUCER = CONSUMERS
_PRODUCER_REGISTERS = 40
_CONSUMER_REGISTERS = 232  # 40 + 2 * 232 <= 65536 registers / 128 threads, in steps of 8


def _shared(shape: tuple[int, ...], dtype, row: int):
    """Shared memory as TMA writes it and wgmma reads it: rows of `row` bytes, without conflicts."""
    tile = plgpu.TilingTransform((8, row // dtype.itemsize))  # pyright: ignore[reportAbstractUsage]
    swizzle = plgpu.SwizzleTransform(row)  # pyright: ignore[reportAbstractUsage]
    return plgpu.SMEM(shape, dtype, transforms=(tile, swizzle))


@cache  # one object a kernel, by which `lowered_once` knows it
def gemm_kernel(problem: Problem, tiling: Tiling, scales: int, sm_count: int):
    """The compiled-on-call function (a, b, *scales of shape (1,)) -> output."""
    return plgpu.kernel(
        partial(_body, problem, tiling, scales),
        out_type=jax.ShapeDtypeStruct((problem.m, problem.n), problem.dtype),
        grid=(sm_count // CLUSTER,),
        grid_names=("grid",),
        cluster=(CLUSTER,),
        cluster_names=("cluster",),
        num_threads=CONSUMERS + 1,
        thread_name="warpgroup",
        kernel_name="scaled_matmul",
        compiler_params=plgpu.CompilerParams(lowering_semantics=plgpu.LoweringSemantics.Warpgroup),
    )


def _body(problem, tiling, scales, a, b, *rest):
    scale_refs, out = rest[:scales], rest[scales]
    a_tile = (TILE_M, TILE_K) if problem.contract_a else (TILE_K, TILE_M)
    b_tile = (tiling.n, TILE_K) if problem.contract_b else (TILE_K, tiling.n)
    row, out_row = tiling.operand_row(problem), tiling.output_row(problem)
    out_tile = (TILE_M // CONSUMERS, out_row // problem.dtype.itemsize)

    @partial(
        pl.run_scoped,
        a_ring=_shared((tiling.stages, *a_tile), a.dtype, row),
        b_ring=_shared((tiling.stages, *b_tile), b.dtype, row),
        staging=_shared((CONSUMERS, 2, *out_tile), out.dtype, out_row),
        full=plgpu.Barrier(num_arrivals=2, num_barriers=tiling.stages),
        empty=plgpu.ClusterBarrier(
            collective_axes=("cluster",), num_arrivals=CONSUMERS, num_barriers=tiling.stages
        ),
        collective_axes="warpgroup",
    )
    def _(a_ring, b_ring, staging, full, empty):
        warpgroup = lax.axis_index("warpgroup")

        @pl.when(warpgroup == _PRODUCER)
        def _():
            plgpu.set_max_registers(_PRODUCER_REGISTERS, action="decrease")
            _produce(problem, tiling, a, b, a_ring, b_ring, full, empty)

        @pl.when(warpgroup != _PRODUCER)
        def _():
            plgpu.set_max_registers(_CONSUMER_REGISTERS, action="increase")
            values = [scale[0] for scale in scale_refs]
            _consume(problem, tiling, a_ring, b_ring, staging, full, empty, values, out)
            plgpu.wait_smem_to_gmem(0, wait_read_only=True)


def _output_tiles(problem, tiling, body):
    """`body(row, column, step)` for each tile of this CTA; `step` counts stages since the start."""
    rows, columns = tiling.clusters(problem)

    def visit(loop, carry):
        row, column = plgpu.planar_snake(loop.index[0], (rows, columns), 1, STRIPE)
        row = row * CLUSTER + lax.axis_index("cluster")
        body(row * TILE_M, column * tiling.n, carry)
        return carry + problem.steps

    loop = plgpu.nd_loop((rows * columns,), collective_axes="grid", init_carry=jnp.int32(0))
    return loop(visit)


def _produce(problem, tiling, a, b, a_ring, b_ring, full, empty):
    """Fill each stage as soon as its readers are done with what it held before."""

    def load_tile(row, column, first):
        @pl.loop(0, problem.steps)
        def _(i):
            step = first + i
            stage = lax.rem(step, tiling.stages)

            @pl.when(step >= tiling.stages)
            def _():
                plgpu.barrier_wait(empty.at[stage])

            k = pl.ds(i * TILE_K, TILE_K)
            rows, columns = pl.ds(row, TILE_M), pl.ds(column, tiling.n)
            a_tile = a.at[rows, k] if problem.contract_a else a.at[k, rows]
            b_tile = b.at[columns, k] if problem.contract_b else b.at[k, columns]
            plgpu.copy_gmem_to_smem(a_tile, a_ring.at[stage], full.at[stage])
            plgpu.copy_gmem_to_smem(
                b_tile, b_ring.at[stage], full.at[stage], collective_axes="cluster"
            )

    total = _output_tiles(problem, tiling, load_tile)

    # A CTA must outlive what its neighbour still reads from or signals to it.
    @pl.loop(jnp.maximum(total - tiling.stages, 0), total)
    def _(step):
        plgpu.barrier_wait(empty.at[lax.rem(step, tiling.stages)])


def _consume(problem, tiling, a_ring, b_ring, staging, full, empty, scales, out):
    warpgroup = lax.axis_index("warpgroup")
    rows = pl.ds(warpgroup * (TILE_M // CONSUMERS), TILE_M // CONSUMERS)

    def operands(stage):
        a, b = a_ring.at[stage], b_ring.at[stage]
        a = a.at[rows, :] if problem.contract_a else a.at[:, rows].transpose((1, 0))
        b = b.transpose((1, 0)) if problem.contract_b else b
        return a, b

    def compute_tile(row, column, first):
        def accumulate(sums):
            @pl.loop(0, problem.steps)
            def _(i):
                step = first + i
                stage = lax.rem(step, tiling.stages)
                plgpu.barrier_wait(full.at[stage])
                plgpu.wgmma(sums, *operands(stage))
                plgpu.wgmma_wait(1)  # the product of the step before is complete

                @pl.when(i > 0)
                def _():
                    plgpu.barrier_arrive(empty.at[lax.rem(step - 1, tiling.stages)])

            result = sums[...]
            plgpu.barrier_arrive(empty.at[lax.rem(first + problem.steps - 1, tiling.stages)])
            return result

        shape = TILE_M // CONSUMERS, tiling.n
        sums = pl.run_scoped(accumulate, plgpu.WGMMAAccumulatorRef(shape, jnp.float32))
        for scale in scales:
            sums = sums * scale
        _store(sums.astype(out.dtype), staging.at[warpgroup], out, row + rows.start, column)

    _output_tiles(problem, tiling, compute_tile)


def _store(values, staging, out, row, column):
    """Registers to device memory by way of two alternating buffers, without waiting for the end."""
    m, n = staging.shape[1:]
    for i in range(values.shape[1] // n):
        # The other buffer may still be read; before the first store, this one may be as well.
        plgpu.wait_smem_to_gmem(1 if i else 0, wait_read_only=True)
        staging[i % 2] = values[:, i * n : (i + 1) * n]
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(staging.at[i % 2], out.at[pl.ds(row, m), pl.ds(column + i * n, n)])

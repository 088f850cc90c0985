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

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from nvfp4_jax.kernels.hopper_gemm_tiling import CONSUMERS, Problem, Tiling

_PRODUCER = CONSUMERS
_PRODUCER_REGISTERS = 40
_CONSUMER_REGISTERS = 232  # 40 + 2 * 232 <= 65536 registers / 128 threads, in steps of 8


def _shared(shape: tuple[int, ...], dtype, row: int):
    """Shared memory as TMA writes it and wgmma reads it: rows of `row` bytes, without conflicts."""
    tile = plgpu.TilingTransform((8, row // dtype.itemsize))  # pyright: ignore[reportAbstractUsage]
    swizzle = plgpu.SwizzleTransform(row)  # pyright: ignore[reportAbstractUsage]
    return plgpu.SMEM(shape, dtype, transforms=(tile, swizzle))


def gemm_kernel(problem: Problem, tiling: Tiling, scales: int, sm_count: int):
    """The compiled-on-call function (a, b, *scales of shape (1,)) -> output."""
    return plgpu.kernel(
        partial(_body, problem, tiling, scales),
        out_type=jax.ShapeDtypeStruct((problem.m, problem.n), problem.dtype),
        grid=(sm_count // tiling.cluster,),
        grid_names=("grid",),
        cluster=(tiling.cluster,),
        cluster_names=("cluster",),
        num_threads=CONSUMERS + 1,
        thread_name="warpgroup",
        kernel_name="scaled_matmul",
        compiler_params=plgpu.CompilerParams(lowering_semantics=plgpu.LoweringSemantics.Warpgroup),
    )


def _body(problem, tiling, scales, a, b, *rest):
    scale_refs, out = rest[:scales], rest[scales]
    a_tile = (tiling.m, tiling.k) if problem.contract_a else (tiling.k, tiling.m)
    b_tile = (tiling.n, tiling.k) if problem.contract_b else (tiling.k, tiling.n)
    row = problem.row_bytes
    # wgmma hands each warpgroup 64 rows; FP32 has rows of 128 bytes where bf16 has 64 or 128.
    out_row = 128 if problem.dtype.itemsize == 4 else row
    out_tile = (64, out_row // problem.dtype.itemsize)
    if tiling.shared is None:
        empty = plgpu.Barrier(num_arrivals=CONSUMERS, num_barriers=tiling.stages)
    else:
        empty = plgpu.ClusterBarrier(
            collective_axes=("cluster",), num_arrivals=CONSUMERS, num_barriers=tiling.stages
        )

    @partial(
        pl.run_scoped,
        a_ring=_shared((tiling.stages, *a_tile), a.dtype, row),
        b_ring=_shared((tiling.stages, *b_tile), b.dtype, row),
        staging=_shared((CONSUMERS, 2, *out_tile), out.dtype, out_row),
        full=plgpu.Barrier(num_arrivals=2, num_barriers=tiling.stages),
        empty=empty,
        turn=plgpu.Barrier(),
        collective_axes="warpgroup",
    )
    def _(a_ring, b_ring, staging, full, empty, turn):
        warpgroup = lax.axis_index("warpgroup")

        @pl.when(warpgroup == _PRODUCER)
        def _():
            plgpu.set_max_registers(_PRODUCER_REGISTERS, action="decrease")
            _produce(problem, tiling, a, b, a_ring, b_ring, full, empty)

        @pl.when(warpgroup != _PRODUCER)
        def _():
            plgpu.set_max_registers(_CONSUMER_REGISTERS, action="increase")
            values = [scale[0] for scale in scale_refs]
            _consume(problem, tiling, a_ring, b_ring, staging, full, empty, turn, values, out)
            plgpu.wait_smem_to_gmem(0, wait_read_only=True)


def _output_tiles(problem, tiling, body):
    """`body(row, column, step)` for each tile of this CTA; `step` counts stages since the start."""
    grid = tiling.clusters(problem)
    steps = pl.cdiv(problem.k, tiling.k)

    def visit(loop, carry):
        tile = list(plgpu.planar_snake(loop.index[0], grid, tiling.minor, tiling.width))
        if tiling.shared is not None:
            axis = "mn".index(tiling.shared)
            tile[axis] = tile[axis] * 2 + lax.axis_index("cluster")
        body(tile[0] * tiling.m, tile[1] * tiling.n, carry)
        return carry + steps

    count = grid[0] * grid[1]
    return plgpu.nd_loop((count,), collective_axes="grid", init_carry=jnp.int32(0))(visit)


def _produce(problem, tiling, a, b, a_ring, b_ring, full, empty):
    """Fill each stage as soon as its readers are done with what it held before."""
    shared_a = "cluster" if tiling.shared == "n" else None
    shared_b = "cluster" if tiling.shared == "m" else None

    def load_tile(row, column, first):
        @pl.loop(0, pl.cdiv(problem.k, tiling.k))
        def _(i):
            step = first + i
            stage = lax.rem(step, tiling.stages)

            @pl.when(step >= tiling.stages)
            def _():
                plgpu.barrier_wait(empty.at[stage])

            k = i * tiling.k
            for operand, ring, contract, free, extent, shared in (
                (a, a_ring, problem.contract_a, row, tiling.m, shared_a),
                (b, b_ring, problem.contract_b, column, tiling.n, shared_b),
            ):
                place = [pl.ds(free, extent), pl.ds(free, extent)]
                place[contract] = pl.ds(k, tiling.k)
                plgpu.copy_gmem_to_smem(
                    operand.at[tuple(place)],
                    ring.at[stage],
                    full.at[stage],
                    collective_axes=shared,
                )

    total = _output_tiles(problem, tiling, load_tile)

    # A CTA must outlive what its neighbour still reads from or signals to it.
    @pl.loop(jnp.maximum(total - tiling.stages, 0), total)
    def _(step):
        plgpu.barrier_wait(empty.at[lax.rem(step, tiling.stages)])


def _consume(problem, tiling, a_ring, b_ring, staging, full, empty, turn, scales, out):
    warpgroup = lax.axis_index("warpgroup")
    m, n = tiling.m, tiling.n
    rows = columns = slice(None)
    m_start = n_start = jnp.int32(0)
    if tiling.split == "m":
        m //= CONSUMERS
        m_start = warpgroup * m
        rows = pl.ds(m_start, m)
    else:
        n //= CONSUMERS
        n_start = warpgroup * n
        columns = pl.ds(n_start, n)
    steps = pl.cdiv(problem.k, tiling.k)
    # With fewer steps the first consumer could be tiles ahead, and a barrier counts to two.
    lead = tiling.lead if steps > 2 * tiling.stages else 0

    def operands(stage):
        a, b = a_ring.at[stage], b_ring.at[stage]
        a = a.at[rows, :] if problem.contract_a else a.at[:, rows].transpose((1, 0))
        b = b.at[columns, :].transpose((1, 0)) if problem.contract_b else b.at[:, columns]
        return a, b

    def compute_tile(row, column, first):
        if lead:

            @pl.when(warpgroup == 1)
            def _():
                plgpu.barrier_wait(turn)

        def accumulate(sums):
            @pl.loop(0, steps)
            def _(i):
                step = first + i
                stage = lax.rem(step, tiling.stages)
                plgpu.barrier_wait(full.at[stage])
                plgpu.wgmma(sums, *operands(stage))
                if lead:

                    @pl.when((warpgroup == 0) & (i == lead - 1))
                    def _():
                        plgpu.barrier_arrive(turn)

                plgpu.wgmma_wait(1)  # the product of the step before is complete

                @pl.when(i > 0)
                def _():
                    plgpu.barrier_arrive(empty.at[lax.rem(step - 1, tiling.stages)])

            result = sums[...]
            plgpu.barrier_arrive(empty.at[lax.rem(first + steps - 1, tiling.stages)])
            return result

        sums = pl.run_scoped(accumulate, plgpu.WGMMAAccumulatorRef((m, n), jnp.float32))
        for scale in scales:
            sums = sums * scale
        _store(sums.astype(out.dtype), staging.at[warpgroup], out, row + m_start, column + n_start)

    _output_tiles(problem, tiling, compute_tile)


def _store(values, staging, out, row, column):
    """Registers to device memory by way of two alternating buffers, without waiting for the end."""
    m, n = staging.shape[1:]
    rows, columns = values.shape[0] // m, values.shape[1] // n
    for i in range(rows):
        for j in range(columns):
            slot = (i * columns + j) % 2
            plgpu.wait_smem_to_gmem(1, wait_read_only=True)
            staging[slot] = values[i * m : (i + 1) * m, j * n : (j + 1) * n]
            plgpu.commit_smem()
            plgpu.copy_smem_to_gmem(
                staging.at[slot], out.at[pl.ds(row + i * m, m), pl.ds(column + j * n, n)]
            )

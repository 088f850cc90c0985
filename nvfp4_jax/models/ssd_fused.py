"""The scan as a sequence of fused kernels: three going forward, five going back.

What is kept for the backward pass beside the arguments: two FP32 numbers a head and token (dt and
the running sum of dt A), and the state at the start of each chunk in the
dtype of x. No (Q, Q) matrix is in device memory, going forward or back.

Precision is that of the XLA form: products of operands in the dtype of x with FP32 accumulation;
dt, decays and the running state FP32; decays and dt multiply in FP32 before an operand is rounded,
once. float32 operands are multiplied as FP32, without TF32.

How a kernel is run is an argument (`Call`): on the GPU by jax-triton, in tests by an interpreter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from nvfp4_jax.models import ssd_recurrence, ssd_within
from nvfp4_jax.models.ssd_tiles import ALONG, HEADS, Launch, Sizes, Tiles, divisor, padded, parts

Call = Callable[..., Sequence[Array]]
"""call(kernel, arguments, results' shapes, grid, launch, constants): the results of a kernel."""


class Plan(NamedTuple):
    """What is known of a scan before its values are."""

    call: Call
    sizes: Sizes
    tiles: Tiles
    chunk: int
    packed: bool

    @property
    def chunks(self) -> int:
        """How many a row has, the last perhaps ragged."""
        return -(-self.sizes.length // self.chunk)


class Decays(NamedTuple):
    """FP32 (batch, heads, chunks * Q) each; see `ssd_device`."""

    steps: Array
    decays: Array


def forward(
    plan: Plan,
    x: Array,
    dt: Array,
    A: Array,
    B: Array,
    C: Array,
    D: Array,
    seq_idx: Array,
    start: Array,
) -> tuple[Array, Array, Decays, Array]:
    """y, the final state, and for the backward pass the decays and the states at chunk starts."""
    decays = _decays(plan, dt, A)
    states, final = _states(plan, x, B, decays, seq_idx, start)
    y = _outputs(plan, x, C, B, D, decays, seq_idx, states, reverse=False)
    return y, final, decays, states


def backward(
    plan: Plan,
    x: Array,
    A: Array,
    B: Array,
    C: Array,
    D: Array,
    seq_idx: Array,
    decays: Decays,
    states: Array,
    dy: Array,
    dfinal: Array,
) -> tuple[Array, ...]:
    """Gradients of x, dt, A, B, C, D and the initial state; of A and D (batch, heads)."""
    gradients, start, overlap = _state_gradients(plan, dy, C, decays, seq_idx, states, dfinal)
    dx = _outputs(plan, dy, B, C, D, decays, seq_idx, gradients, reverse=True)
    dC, *later = _gradients(plan, dy, x, C, B, decays, seq_idx, states, reverse=False)
    dB, *earlier = _gradients(plan, x, dy, B, C, decays, seq_idx, gradients, reverse=True)
    kept, along = jnp.moveaxis(jnp.sum(earlier.pop(), axis=3), -1, 0)
    ends = jnp.sum(overlap, axis=3) + kept
    ddt, dA = _steps(plan, A, decays.steps, later[:2], earlier, ends)
    return dx, ddt, jnp.sum(dA, axis=2), dB, dC, jnp.sum(along, axis=2), start


def _decays(plan: Plan, dt: Array, A: Array) -> Decays:
    batch, length, heads = dt.shape
    return Decays(
        *plan.call(
            ssd_recurrence.decays_kernel,
            (dt, A),
            2 * [_fp32(batch, heads, plan.chunks * plan.chunk)],
            (-(-heads // HEADS), plan.chunks, batch),
            ALONG,
            {"LENGTH": length, "HEADS": heads, "CHUNK": plan.chunk, "BLOCK": HEADS},
        )
    )


def _states(
    plan: Plan, x: Array, B: Array, decays: Decays, seq_idx: Array, start: Array
) -> Sequence[Array]:
    rows, launch = _rows(plan.tiles.states, padded(plan.sizes.state))
    return plan.call(
        ssd_recurrence.states_kernel,
        (x, B, *decays, seq_idx, start),
        [_chunk_states(plan, x), _fp32(*start.shape)],
        (-(-plan.sizes.state // rows), plan.sizes.heads, plan.sizes.batch),
        launch,
        {**_shared(plan), "ROWS": rows},
    )


def _state_gradients(
    plan: Plan, dy: Array, C: Array, decays: Decays, seq_idx: Array, states: Array, end: Array
) -> Sequence[Array]:
    batch, heads = plan.sizes.batch, plan.sizes.heads
    rows, launch = _rows(plan.tiles.state_gradients, padded(plan.sizes.state))
    slices = -(-plan.sizes.state // rows)
    return plan.call(
        ssd_recurrence.state_gradients_kernel,
        (dy, C, decays.decays, seq_idx, states, end),
        [_like(states), _fp32(*end.shape), _fp32(batch, heads, plan.chunks, slices)],
        (slices, heads, batch),
        launch,
        {**_shared(plan), "ROWS": rows},
    )


def _outputs(
    plan: Plan,
    values: Array,
    rows_of: Array,
    columns_of: Array,
    D: Array,
    decays: Decays,
    seq_idx: Array,
    states: Array,
    *,
    reverse: bool,
) -> Array:
    rows, launch = _rows(plan.tiles.outputs, plan.chunk)
    together = divisor(plan.sizes.share, plan.tiles.output_heads)
    programs = plan.chunk // rows * (plan.sizes.heads // together)
    constants = {"ROWS": rows, "BLOCK_N": padded(plan.sizes.state), "REVERSED": reverse}
    (results,) = plan.call(
        ssd_within.outputs_kernel,
        (values, rows_of, columns_of, D, *decays, seq_idx, states),
        [_like(values)],
        (programs, plan.chunks, plan.sizes.batch),
        launch,
        {**_shared(plan), **constants, "TOGETHER": together},
    )
    return results


def _gradients(
    plan: Plan,
    own: Array,
    other: Array,
    rows_of: Array,
    columns_of: Array,
    decays: Decays,
    seq_idx: Array,
    states: Array,
    *,
    reverse: bool,
) -> Sequence[Array]:
    """The gradient of `rows_of`, vectors for each head, and sums for each tile."""
    sizes = plan.sizes
    rows, launch = _rows(plan.tiles.gradients, plan.chunk)
    tiles = plan.chunk // rows
    constants = {"ROWS": rows, "BLOCK_N": padded(sizes.state), "REVERSED": reverse}
    vector, unused = _like(decays.steps), _fp32(1)
    sums = _fp32(sizes.batch, sizes.heads, plan.chunks, tiles, 2)
    return plan.call(
        ssd_within.gradients_kernel,
        (own, other, rows_of, columns_of, *decays, seq_idx, states),
        [_like(rows_of), vector, vector, *((vector, sums) if reverse else (unused, unused))],
        (tiles * sizes.groups, plan.chunks, sizes.batch),
        launch,
        {**_shared(plan), **constants},
    )


def _steps(
    plan: Plan,
    A: Array,
    steps: Array,
    later: Sequence[Array],
    earlier: Sequence[Array],
    ends: Array,
) -> Sequence[Array]:
    batch, length, heads, *_ = plan.sizes
    sizes = {"LENGTH": length, "CHUNKS": plan.chunks, "HEADS": heads, "CHUNK": plan.chunk}
    return plan.call(
        ssd_recurrence.steps_kernel,
        (A, steps, *later, *earlier, ends),
        [_fp32(batch, length, heads), _like(ends)],
        (-(-heads // HEADS), plan.chunks, batch),
        ALONG,
        {**sizes, "BLOCK": HEADS},
    )


def _shared(plan: Plan) -> dict[str, int | bool]:
    """The constants that most kernels are compiled for."""
    sizes, (main, rest) = plan.sizes, parts(plan.sizes.head_dim)
    return {
        "LENGTH": sizes.length,
        "CHUNKS": plan.chunks,
        "HEADS": sizes.heads,
        "GROUPS": sizes.groups,
        "P": sizes.head_dim,
        "N": sizes.state,
        "CHUNK": plan.chunk,
        "MAIN": main,
        "REST": rest,
        "PACKED": plan.packed,
    }


def _rows(launch: Launch, limit: int) -> tuple[int, Launch]:
    return min(launch.rows, limit), launch


def _chunk_states(plan: Plan, x: Array) -> jax.ShapeDtypeStruct:
    sizes = plan.sizes
    shape = (sizes.batch, plan.chunks, sizes.heads, sizes.state, sizes.head_dim)
    return jax.ShapeDtypeStruct(shape, x.dtype)


def _fp32(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def _like(array: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(array.shape, array.dtype)

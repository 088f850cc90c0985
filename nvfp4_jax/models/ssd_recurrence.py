"""The kernels of the scan that run along the tokens: decays, states, and their gradients (Triton).

For one head, with l the running sum of dt A within a chunk, S the state at its start (N x P here),
S' at its end, dS' the gradient of S':

    decays:           l
    states:           S' = exp(l_end) S + sum over k of  exp(l_end - l_k) dt_k B_k x_k^T
    state_gradients:  dS = exp(l_end) dS' + sum over q of  exp(l_q) C_q dy_q^T
    steps:            da_t = sum over q >= t of  dl_q,   ddt_t = A da_t + what dt gets directly

`states` walks along the chunks of a head with S in registers, in FP32, and writes only what later
kernels multiply with, rounded to the dtype of x; a chunk's own contribution never reaches memory.
`state_gradients` is the same walk from the last chunk to the first.
"""

# pyright: reportGeneralTypeIssues=false
# (it takes a call of one device function by another for one from outside a kernel, which raises)

from __future__ import annotations

import triton
import triton.language as tl

from nvfp4_jax.models.ssd_device import (
    from_start,
    load_parts,
    load_state,
    load_tile,
    product_with_parts,
    store_parts,
    store_state,
    store_tile,
    sum_over_parts,
    survival,
    to_end,
)

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def decays_kernel(
    dt,  # (batch, length, heads)
    A,  # (heads,)
    steps,  # out (batch, heads, padded length)
    decays,  # out, the same shape
    LENGTH: tl.constexpr,
    HEADS: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Grid (heads / BLOCK, chunks, batch)."""
    chunk, batch = tl.program_id(1), tl.program_id(2)
    padded = tl.num_programs(1) * CHUNK
    first, head = chunk * CHUNK, tl.program_id(0) * BLOCK
    heads = head + tl.arange(0, BLOCK)
    base = dt + (batch * LENGTH + first).to(tl.int64) * HEADS + head
    step = load_tile(base, first, LENGTH, HEADS, HEADS - head, CHUNK, BLOCK)
    rate = tl.load(A + heads, heads < HEADS, 0.0)
    l_t = tl.cumsum(step * rate[None, :], axis=0) * LOG2_E
    out = (batch * HEADS + head) * padded + first
    store_tile(steps + out, tl.trans(step), head, HEADS, padded, CHUNK, BLOCK, CHUNK)
    store_tile(decays + out, tl.trans(l_t), head, HEADS, padded, CHUNK, BLOCK, CHUNK)


@triton.jit
def states_kernel(
    x,  # (batch, length, heads, P)
    B,  # (batch, length, groups, N)
    steps,
    decays,
    seq_idx,
    start,  # (batch, heads, P, N)
    states,  # out (batch, chunks, heads, N, P), in the dtype of x
    final,  # out (batch, heads, P, N)
    LENGTH: tl.constexpr,
    CHUNKS: tl.constexpr,
    HEADS: tl.constexpr,
    GROUPS: tl.constexpr,
    P: tl.constexpr,
    N: tl.constexpr,
    CHUNK: tl.constexpr,
    ROWS: tl.constexpr,
    MAIN: tl.constexpr,
    REST: tl.constexpr,
    PACKED: tl.constexpr,
):
    """Grid (N / ROWS, heads, batch)."""
    head, batch = tl.program_id(1), tl.program_id(2)
    n0 = tl.program_id(0) * ROWS
    group = head // (HEADS // GROUPS)
    row = batch.to(tl.int64) * LENGTH
    tokens = tl.arange(0, CHUNK)
    corner = (batch * HEADS + head).to(tl.int64) * (P * N)
    main, rest = load_state(start + corner, n0, P, N, ROWS, MAIN, REST)
    vectors = (batch * HEADS + head) * (CHUNKS * CHUNK)
    for chunk in range(CHUNKS):
        first = chunk * CHUNK
        target = states + ((batch * CHUNKS + chunk).to(tl.int64) * HEADS + head) * (N * P) + n0 * P
        store_parts(target, main, rest, n0, N, P, P, ROWS, MAIN, REST)
        l_t = tl.load(decays + vectors + first + tokens)
        step = tl.load(steps + vectors + first + tokens)
        l_end = tl.load(decays + vectors + first + CHUNK - 1)
        weight = to_end(l_t, l_end, first + tokens, seq_idx, row, first, LENGTH, CHUNK, PACKED)
        b_rows = B + ((row + first) * GROUPS + group) * N + n0
        b = load_tile(b_rows, first, LENGTH, GROUPS * N, N - n0, CHUNK, ROWS)
        x_rows = x + ((row + first) * HEADS + head) * P
        x_main, x_rest = load_parts(x_rows, first, LENGTH, HEADS * P, P, CHUNK, MAIN, REST)
        weighted = (tl.trans(b).to(tl.float32) * (weight * step)[None, :]).to(x.dtype.element_ty)
        factor = survival(l_end, seq_idx, row, first, LENGTH, CHUNK, PACKED)
        main, rest = product_with_parts(
            weighted, x_main, x_rest, main * factor, rest * factor, REST
        )
    store_state(final + corner, main, rest, n0, P, N, ROWS, MAIN, REST)


@triton.jit
def state_gradients_kernel(
    dy,
    C,
    decays,
    seq_idx,
    states,
    end,  # (batch, heads, P, N): gradient of the final state
    gradients,  # out (batch, chunks, heads, N, P): dS', in the dtype of x
    start,  # out (batch, heads, P, N): gradient of the initial state
    overlap,  # out (batch, heads, chunks, N / ROWS): exp(l_end) <S, dS'>
    LENGTH: tl.constexpr,
    CHUNKS: tl.constexpr,
    HEADS: tl.constexpr,
    GROUPS: tl.constexpr,
    P: tl.constexpr,
    N: tl.constexpr,
    CHUNK: tl.constexpr,
    ROWS: tl.constexpr,
    MAIN: tl.constexpr,
    REST: tl.constexpr,
    PACKED: tl.constexpr,
):
    """Grid (N / ROWS, heads, batch); `states_kernel` from the last chunk to the first."""
    head, batch = tl.program_id(1), tl.program_id(2)
    n0 = tl.program_id(0) * ROWS
    group = head // (HEADS // GROUPS)
    row = batch.to(tl.int64) * LENGTH
    tokens = tl.arange(0, CHUNK)
    corner = (batch * HEADS + head).to(tl.int64) * (P * N)
    main, rest = load_state(end + corner, n0, P, N, ROWS, MAIN, REST)
    vectors = (batch * HEADS + head) * CHUNKS
    head_states = (batch.to(tl.int64) * CHUNKS * HEADS + head) * (N * P) + n0 * P
    at = head_states + (CHUNKS - 1) * (HEADS * N * P)
    next_main, next_rest = load_parts(states + at, n0, N, P, P, ROWS, MAIN, REST)
    for i in range(CHUNKS):
        chunk = CHUNKS - 1 - i
        first = chunk * CHUNK
        s_main, s_rest = next_main, next_rest
        # The next state, since Triton reads ahead only what goes into a product.
        store_parts(gradients + at, main, rest, n0, N, P, P, ROWS, MAIN, REST)
        at = tl.maximum(at - HEADS * N * P, head_states)
        next_main, next_rest = load_parts(states + at, n0, N, P, P, ROWS, MAIN, REST)
        l_t = tl.load(decays + (vectors + chunk) * CHUNK + tokens)
        l_end = tl.load(decays + (vectors + chunk) * CHUNK + CHUNK - 1)
        factor = survival(l_end, seq_idx, row, first, LENGTH, CHUNK, PACKED)
        shared = tl.sum(sum_over_parts(s_main, s_rest, main, rest, REST))
        place = (vectors + chunk) * tl.num_programs(0) + tl.program_id(0)
        tl.store(overlap + place, factor * shared)
        weight = from_start(l_t, first + tokens, seq_idx, row, first, LENGTH, PACKED)
        c_rows = C + ((row + first) * GROUPS + group) * N + n0
        c = load_tile(c_rows, first, LENGTH, GROUPS * N, N - n0, CHUNK, ROWS)
        dy_rows = dy + ((row + first) * HEADS + head) * P
        dy_main, dy_rest = load_parts(dy_rows, first, LENGTH, HEADS * P, P, CHUNK, MAIN, REST)
        weighted = (tl.trans(c).to(tl.float32) * weight[None, :]).to(dy.dtype.element_ty)
        main, rest = product_with_parts(
            weighted, dy_main, dy_rest, main * factor, rest * factor, REST
        )
    store_state(start + corner, main, rest, n0, P, N, ROWS, MAIN, REST)


@triton.jit
def steps_kernel(
    A,
    steps,
    within,  # (batch, heads, padded length): dl as the later token, in two parts
    across,
    earlier_within,  # the same shape: -dl as the earlier token by dt, in two parts
    earlier_across,
    alone,  # the same shape: what dt gets directly beside these
    ends,  # (batch, heads, chunks): dl_end
    ddt,  # out (batch, length, heads)
    dA,  # out (batch, heads, chunks)
    LENGTH: tl.constexpr,
    CHUNKS: tl.constexpr,
    HEADS: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Grid (heads / BLOCK, chunks, batch)."""
    chunk, batch = tl.program_id(1), tl.program_id(2)
    head, first = tl.program_id(0) * BLOCK, chunk * CHUNK
    heads = head + tl.arange(0, BLOCK)
    at = (batch * HEADS + heads) * CHUNKS + chunk
    padded: tl.constexpr = CHUNKS * CHUNK
    base = (batch * HEADS + head) * padded + first
    step = load_tile(steps + base, head, HEADS, padded, CHUNK, BLOCK, CHUNK)
    direct = load_tile(earlier_within + base, head, HEADS, padded, CHUNK, BLOCK, CHUNK)
    direct += load_tile(earlier_across + base, head, HEADS, padded, CHUNK, BLOCK, CHUNK)
    total = load_tile(within + base, head, HEADS, padded, CHUNK, BLOCK, CHUNK)
    total += load_tile(across + base, head, HEADS, padded, CHUNK, BLOCK, CHUNK) - step * direct
    end = tl.load(ends + at, heads < HEADS, 0.0)
    total += tl.where(tl.arange(0, CHUNK)[None, :] == CHUNK - 1, end[:, None], 0.0)
    direct += load_tile(alone + base, head, HEADS, padded, CHUNK, BLOCK, CHUNK)
    da = tl.cumsum(total, axis=1, reverse=True)
    tl.store(dA + at, tl.sum(da * step, axis=1), heads < HEADS)
    rate = tl.load(A + heads, heads < HEADS, 0.0)
    out = ddt + (batch * LENGTH + first).to(tl.int64) * HEADS + head
    gradient = tl.trans(rate[:, None] * da + direct)
    store_tile(out, gradient, first, LENGTH, HEADS, HEADS - head, CHUNK, BLOCK)

"""The kernels of the scan that work within a chunk, forward and backward (Triton).

For one head and chunk, with S the state at its start and dS' the gradient of the one at its end,

    M_qk = (C_q . B_k) exp(l_q - l_k) dt_k,    E_q = exp(l_q),    w_k = exp(l_end - l_k) dt_k
    y_q  = sum over k <= q of  M_qk x_k   + E_q S^T C_q    + D x_q

What a token gives later ones is what those give back to it in the gradient, so dx is the same sum
with the sides changed, and one kernel (`outputs_kernel`) makes both:

    dx_k = sum over q >= k of  M_qk dy_q  + w_k dS'^T B_k  + D dy_k              reversed

So with the gradients of C and B (`gradients_kernel`). With dG_qk = dy_q . x_k exp(l_q - l_k) dt_k,

    dC_q = sum over heads, k <= q of  dG_qk B_k  + E_q S dy_q
    dB_k = sum over heads, q >= k of  dG_qk C_q  + w_k dS' x_k                   reversed

B and C belong to a group of heads; a program holds C B^T in registers and goes through heads of
its group, for gradients all of them in a fixed order, so that two runs give equal bits. dG is
summed over heads before its product. No (Q, Q) matrix reaches memory.

l occurs in every decay. With Z_qk = M_qk dy_q . x_k for q > k (a token's decay to itself is 1 and
has no gradient) and v_k = B_k . w_k dS' x_k,

    dl_t   = sum over k of Z_tk + C_t . E_t S dy_t  -  sum over q of Z_qt - v_t
    dl_end = sum of v_k + exp(l_end) <S, dS'>, in addition, for the chunk's last token

The first two terms are vectors of the forward direction, the others of the reversed one; these are
formed without their factor dt, since so they are what dt gets directly, with C_k . B_k x_k . dy_k.
A shorter form of dl exists (dy_t . y_t - x_t . dx_t): it subtracts numbers rounded apart.
"""

from __future__ import annotations

import triton
import triton.language as tl

from nvfp4_jax.models.ssd_device import (
    between,
    from_start,
    load_parts,
    load_tile,
    masked,
    product_over_parts,
    product_with_parts,
    store_parts,
    store_tile,
    sum_over_parts,
    to_end,
    zero_parts,
)


@triton.jit
def outputs_kernel(
    values,  # (batch, length, heads, P): x; reversed dy
    rows,  # (batch, length, groups, N): C, of the tokens that are written; reversed B
    columns,  # the same shape: B, of the tokens that are summed over; reversed C
    D,  # (heads,)
    steps,
    decays,
    seq_idx,
    states,  # (batch, chunks, heads, N, P): S; reversed dS'
    results,  # out, as values: y; reversed dx
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
    BLOCK_N: tl.constexpr,
    TOGETHER: tl.constexpr,
    PACKED: tl.constexpr,
    REVERSED: tl.constexpr,
):
    """Grid (CHUNK / ROWS * HEADS / TOGETHER, chunks, batch): TOGETHER heads of one group."""
    tiles = CHUNK // ROWS
    r0 = (tl.program_id(0) % tiles) * ROWS
    head0 = (tl.program_id(0) // tiles) * TOGETHER
    chunk, batch = tl.program_id(1), tl.program_id(2)
    group = head0 // (HEADS // GROUPS)
    first = chunk * CHUNK
    row = batch.to(tl.int64) * LENGTH
    r, s = r0 + tl.arange(0, ROWS), tl.arange(0, CHUNK)

    at = ((row + first) * GROUPS + group) * N
    a = load_tile(rows + at + r0 * GROUPS * N, first + r0, LENGTH, GROUPS * N, N, ROWS, BLOCK_N)
    b = load_tile(columns + at, first, LENGTH, GROUPS * N, N, CHUNK, BLOCK_N)
    scores = masked(
        tl.dot(a, tl.trans(b), input_precision="ieee"),
        first + r,
        first + s,
        seq_idx,
        row,
        LENGTH,
        PACKED,
        REVERSED,
        False,
    )
    for i in range(TOGETHER):
        head = head0 + i
        vectors = ((batch * HEADS + head) * CHUNKS + chunk) * CHUNK
        v_rows = ((row + first) * HEADS + head) * P
        v_main, v_rest = load_parts(values + v_rows, first, LENGTH, HEADS * P, P, CHUNK, MAIN, REST)
        corner = ((batch * CHUNKS + chunk).to(tl.int64) * HEADS + head) * (N * P)
        s_main, s_rest = load_parts(states + corner, 0, N, P, P, BLOCK_N, MAIN, REST)
        main, rest = zero_parts(ROWS, MAIN, REST)
        main, rest = product_with_parts(a, s_main, s_rest, main, rest, REST)
        l_r, l_s = tl.load(decays + vectors + r), tl.load(decays + vectors + s)
        if REVERSED:
            l_end = tl.load(decays + vectors + CHUNK - 1)
            scale = to_end(l_r, l_end, first + r, seq_idx, row, first, LENGTH, CHUNK, PACKED)
            weights = scores * between(l_s[None, :], l_r[:, None])
        else:
            scale = from_start(l_r, first + r, seq_idx, row, first, LENGTH, PACKED)
            weights = scores * between(l_r[:, None], l_s[None, :])
            weights *= tl.load(steps + vectors + s)[None, :]
        main, rest = main * scale[:, None], rest * scale[:, None]
        weights = weights.to(values.dtype.element_ty)
        main, rest = product_with_parts(weights, v_main, v_rest, main, rest, REST)
        if REVERSED:
            step = tl.load(steps + vectors + r)
            main, rest = main * step[:, None], rest * step[:, None]
        own = v_rows + r0 * HEADS * P
        skip, skip_rest = load_parts(
            values + own, first + r0, LENGTH, HEADS * P, P, ROWS, MAIN, REST
        )
        d = tl.load(D + head)
        main += d * skip.to(tl.float32)
        rest += d * skip_rest.to(tl.float32)
        store_parts(results + own, main, rest, first + r0, LENGTH, HEADS * P, P, ROWS, MAIN, REST)


@triton.jit
def gradients_kernel(
    own,  # (batch, length, heads, P): dy; reversed x
    other,  # the same shape: x; reversed dy
    rows,  # (batch, length, groups, N): C; reversed B
    columns,  # the same shape: B; reversed C
    steps,
    decays,
    seq_idx,
    states,  # (batch, chunks, heads, N, P): S; reversed dS'
    results,  # out, as rows: dC; reversed dB
    within,  # out (batch, heads, padded length): the sum of Z; reversed, by dt
    across,  # out, the same shape: the term with the state; reversed, by dt
    alone,  # out, the same shape, reversed: C_k . B_k x_k . dy_k
    sums,  # out (batch, heads, chunks, CHUNK / ROWS, 2), reversed: of v_k and of x . dy
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
    BLOCK_N: tl.constexpr,
    PACKED: tl.constexpr,
    REVERSED: tl.constexpr,
):
    """Grid (CHUNK / ROWS * groups, chunks, batch): all heads of a group."""
    tiles, share = CHUNK // ROWS, HEADS // GROUPS
    tile, group = tl.program_id(0) % tiles, tl.program_id(0) // tiles
    chunk, batch = tl.program_id(1), tl.program_id(2)
    first, r0 = chunk * CHUNK, tile * ROWS
    row = batch.to(tl.int64) * LENGTH
    r, s = r0 + tl.arange(0, ROWS), tl.arange(0, CHUNK)

    at = ((row + first) * GROUPS + group) * N
    a_rows = at + r0 * GROUPS * N
    a = load_tile(rows + a_rows, first + r0, LENGTH, GROUPS * N, N, ROWS, BLOCK_N)
    b = load_tile(columns + at, first, LENGTH, GROUPS * N, N, CHUNK, BLOCK_N)
    scores = masked(
        tl.dot(a, tl.trans(b), input_precision="ieee"),
        first + r,
        first + s,
        seq_idx,
        row,
        LENGTH,
        PACKED,
        REVERSED,
        True,
    )
    score_gradient = tl.zeros((ROWS, CHUNK), tl.float32)
    head0 = batch * HEADS + group * share
    # dt of the earlier token: a column, or reversed a row.
    side = r if REVERSED else s
    for i in range(share):
        here = ((head0 + i) * CHUNKS + chunk) * CHUNK
        l_r, l_s = tl.load(decays + here + r), tl.load(decays + here + s)
        step = tl.load(steps + here + side)

        v_rows = ((row + first) * HEADS + group * share + i) * P
        u_rows = v_rows + r0 * HEADS * P
        v_main, v_rest = load_parts(other + v_rows, first, LENGTH, HEADS * P, P, CHUNK, MAIN, REST)
        u_main, u_rest = load_parts(
            own + u_rows, first + r0, LENGTH, HEADS * P, P, ROWS, MAIN, REST
        )
        part = tl.zeros((ROWS, CHUNK), tl.float32)
        part = product_over_parts(u_main, u_rest, v_main, v_rest, part, REST)
        if REVERSED:
            part *= between(l_s[None, :], l_r[:, None])
            score_gradient += part * step[:, None]
        else:
            part *= between(l_r[:, None], l_s[None, :])
            part *= step[None, :]
            score_gradient += part
        tl.store(within + here + r, tl.sum(part * scores, axis=1))
    low = masked(
        score_gradient, first + r, first + s, seq_idx, row, LENGTH, PACKED, REVERSED, False
    )
    gradient = tl.dot(low.to(a.dtype), b, input_precision="ieee")

    # Read again, since held in registers through the loop above it would push others out.
    a = load_tile(rows + a_rows, first + r0, LENGTH, GROUPS * N, N, ROWS, BLOCK_N)
    own_b = load_tile(columns + a_rows, first + r0, LENGTH, GROUPS * N, N, ROWS, BLOCK_N)
    score = tl.sum(a.to(tl.float32) * own_b.to(tl.float32), axis=1)  # of a token with itself
    vectors = (head0 * CHUNKS + chunk) * CHUNK
    next_r, next_end = tl.load(decays + vectors + r), tl.load(decays + vectors + CHUNK - 1)
    next_step = tl.load(steps + vectors + r)
    for i in range(share):
        l_r, l_end, step = next_r, next_end, next_step
        vectors = ((head0 + tl.minimum(i + 1, share - 1)) * CHUNKS + chunk) * CHUNK
        next_r, next_end = tl.load(decays + vectors + r), tl.load(decays + vectors + CHUNK - 1)
        next_step = tl.load(steps + vectors + r)

        place = (head0 + i) * CHUNKS + chunk
        u_rows = ((row + first + r0) * HEADS + group * share + i) * P
        u_main, u_rest = load_parts(
            own + u_rows, first + r0, LENGTH, HEADS * P, P, ROWS, MAIN, REST
        )
        if REVERSED:
            w_main, w_rest = load_parts(
                other + u_rows, first + r0, LENGTH, HEADS * P, P, ROWS, MAIN, REST
            )
            along = sum_over_parts(u_main, u_rest, w_main, w_rest, REST)
            tl.store(alone + place * CHUNK + r, along * score)
            tl.store(sums + (place * tiles + tile) * 2 + 1, tl.sum(along))
        corner = ((batch * CHUNKS + chunk).to(tl.int64) * HEADS + group * share + i) * (N * P)
        s_main, s_rest = load_parts(states + corner, 0, N, P, P, BLOCK_N, MAIN, REST)
        part = tl.zeros((ROWS, BLOCK_N), tl.float32)
        part = product_over_parts(u_main, u_rest, s_main, s_rest, part, REST)
        total = tl.sum(part * a.to(tl.float32), axis=1)
        if REVERSED:
            scale = to_end(l_r, l_end, first + r, seq_idx, row, first, LENGTH, CHUNK, PACKED)
            gradient += part * (scale * step)[:, None]
            tl.store(sums + (place * tiles + tile) * 2, tl.sum(total * scale * step))
        else:
            scale = from_start(l_r, first + r, seq_idx, row, first, LENGTH, PACKED)
            gradient += part * scale[:, None]
        tl.store(across + place * CHUNK + r, total * scale)
    store_tile(results + a_rows, gradient, first + r0, LENGTH, GROUPS * N, N, ROWS, BLOCK_N)

"""Attention that never writes its scores to memory and never leaves a document (Triton).

Documents packed into a row are runs of tokens, so what token t may see is one interval,

    start[t] <= s <= t,        start[t]: the first token of its document

and a tile of queries or keys knows from the ends of its interval which tiles of the other there are
to visit: work grows with the squared length of the documents, not of the row. Tiles wholly inside
need no mask.

The softmax is computed as the keys come by (FlashAttention), in base two and FP32: with m the
largest score so far and d the sum of 2^(score - m), both are rescaled when m grows. What is kept
for the backward pass is the output and lse = m + log2(d), one number a query and head; there

    p = 2^(score - lse)    dv = p^T do    dp = do v^T    ds = p (dp - delta)    delta = do . o
    dk = ds^T q scale      dq = ds k scale

One program owns a tile of keys and adds up its dk and dv over the queries of all heads that share
it, in a fixed order; another kernel owns queries and adds up dq. Nothing is added atomically.

Source: arXiv 2205.14135, 2307.08691.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax_triton
import triton
import triton.language as tl
from jax import Array
from jax.custom_batching import sequential_vmap

from nvfp4_jax.models.splitting import splitting
from nvfp4_jax.models.target import compute_capability

LOG2_E = 1 / math.log(2)
HEAD_DIMS = (16, 32, 64, 128)


class Tiles(NamedTuple):
    """Queries and keys of a tile, warps, and stages of the loop's pipeline."""

    queries: int
    keys: int
    warps: int
    stages: int


# By kernel, up to 64 channels a head and above: the accumulators must fit into the registers.
FORWARD = (Tiles(128, 64, 4, 3), Tiles(128, 64, 8, 3))
QUERIES = (Tiles(128, 64, 8, 2), Tiles(128, 64, 8, 2))
KEYS = (Tiles(64, 128, 8, 2), Tiles(64, 128, 8, 2))


@triton.jit
def _load(base, first, LENGTH, STRIDE, ROWS: tl.constexpr, D: tl.constexpr):
    """Rows of one head, zero beyond the end."""
    row = first + tl.arange(0, ROWS)
    at = base + row.to(tl.int64)[:, None] * STRIDE + tl.arange(0, D)[None, :]
    return tl.load(at, (row < LENGTH)[:, None], 0.0)


@triton.jit
def _store(base, tile, first, LENGTH, STRIDE, ROWS: tl.constexpr, D: tl.constexpr):
    row = first + tl.arange(0, ROWS)
    at = base + row.to(tl.int64)[:, None] * STRIDE + tl.arange(0, D)[None, :]
    tl.store(at, tile.to(base.dtype.element_ty), (row < LENGTH)[:, None])


@triton.jit
def _attend_some(
    mixed, total, largest, q, k, v, starts, first, low, high, SCALE: tl.constexpr,
    LENGTH: tl.constexpr, STRIDE: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    D: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Fold the keys of low .. high, whole tiles, into the softmax of a tile of queries."""
    t = first + tl.arange(0, BM)
    for begin in range(low, high, BN):
        keys = _load(k, begin, LENGTH, STRIDE, BN, D)
        scores = tl.dot(q, tl.trans(keys)) * SCALE
        if MASKED:
            s = begin + tl.arange(0, BN)
            seen = (s[None, :] <= t[:, None]) & (s[None, :] >= starts[:, None])
            scores = tl.where(seen, scores, float("-inf"))
        larger = tl.maximum(largest, tl.max(scores, 1))
        # a query that has seen no key yet: -inf - -inf would be NaN
        base = tl.where(larger == float("-inf"), 0.0, larger) if MASKED else larger
        weights = tl.math.exp2(scores - base[:, None])
        shrink = tl.math.exp2(largest - base)
        total = total * shrink + tl.sum(weights, 1)
        values = _load(v, begin, LENGTH, STRIDE, BN, D)
        mixed = tl.dot(weights.to(values.dtype), values, mixed * shrink[:, None])
        largest = larger
    return mixed, total, largest


@triton.jit
def _forward(
    q, k, v, starts, out, lse,
    SCALE: tl.constexpr, LENGTH: tl.constexpr, HEADS: tl.constexpr, KV_HEADS: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    # the last queries first: they have the most keys
    first = (tl.num_programs(0) - 1 - tl.program_id(0)) * BM
    batch = (tl.program_id(1) // HEADS).to(tl.int64)
    head = tl.program_id(1) % HEADS
    shared = head // (HEADS // KV_HEADS)
    STRIDE: tl.constexpr = HEADS * D
    KV_STRIDE: tl.constexpr = KV_HEADS * D
    q += batch * LENGTH * STRIDE + head * D
    k += batch * LENGTH * KV_STRIDE + shared * D
    v += batch * LENGTH * KV_STRIDE + shared * D
    t = first + tl.arange(0, BM)
    begins = tl.load(starts + batch * LENGTH + t, t < LENGTH, LENGTH)
    last = tl.minimum(first + BM, LENGTH) - 1
    low = tl.load(starts + batch * LENGTH + first) // BN * BN
    inside = tl.cdiv(tl.load(starts + batch * LENGTH + last), BN) * BN
    inside = tl.minimum(inside, first)
    queries = _load(q, first, LENGTH, STRIDE, BM, D)
    mixed = tl.zeros((BM, D), tl.float32)
    total = tl.zeros((BM,), tl.float32)
    largest = tl.full((BM,), float("-inf"), tl.float32)
    mixed, total, largest = _attend_some(
        mixed, total, largest, queries, k, v, begins, first, low, inside,
        SCALE, LENGTH, KV_STRIDE, BM, BN, D, True,
    )  # fmt: skip
    mixed, total, largest = _attend_some(
        mixed, total, largest, queries, k, v, begins, first, tl.maximum(low, inside), first,
        SCALE, LENGTH, KV_STRIDE, BM, BN, D, False,
    )  # fmt: skip
    mixed, total, largest = _attend_some(
        mixed, total, largest, queries, k, v, begins, first, first, last + 1,
        SCALE, LENGTH, KV_STRIDE, BM, BN, D, True,
    )  # fmt: skip
    out += batch * LENGTH * STRIDE + head * D
    _store(out, mixed / total[:, None], first, LENGTH, STRIDE, BM, D)
    lse += (batch * HEADS + head) * LENGTH + t
    tl.store(lse, largest + tl.math.log2(total), t < LENGTH)


@triton.jit
def _queries_some(
    dq, q, do, lse, delta, k, v, starts, first, low, high, SCALE: tl.constexpr,
    LENGTH: tl.constexpr, STRIDE: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    D: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    t = first + tl.arange(0, BM)
    for begin in range(low, high, BN):
        keys = _load(k, begin, LENGTH, STRIDE, BN, D)
        values = _load(v, begin, LENGTH, STRIDE, BN, D)
        weights = tl.math.exp2(tl.dot(q, tl.trans(keys)) * SCALE - lse[:, None])
        if MASKED:
            s = begin + tl.arange(0, BN)
            seen = (s[None, :] <= t[:, None]) & (s[None, :] >= starts[:, None])
            weights = tl.where(seen, weights, 0.0)
        slopes = weights * (tl.dot(do, tl.trans(values)) - delta[:, None])
        dq = tl.dot(slopes.to(keys.dtype), keys, dq)
    return dq


@triton.jit
def _query_gradients(
    q, k, v, starts, do, lse, delta, dq,
    SCALE: tl.constexpr, LENGTH: tl.constexpr, HEADS: tl.constexpr, KV_HEADS: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, D: tl.constexpr, OUTER: tl.constexpr,
):  # fmt: skip
    first = (tl.num_programs(0) - 1 - tl.program_id(0)) * BM
    batch = (tl.program_id(1) // HEADS).to(tl.int64)
    head = tl.program_id(1) % HEADS
    shared = head // (HEADS // KV_HEADS)
    STRIDE: tl.constexpr = HEADS * D
    KV_STRIDE: tl.constexpr = KV_HEADS * D
    here = batch * LENGTH * STRIDE + head * D
    k += batch * LENGTH * KV_STRIDE + shared * D
    v += batch * LENGTH * KV_STRIDE + shared * D
    t = first + tl.arange(0, BM)
    begins = tl.load(starts + batch * LENGTH + t, t < LENGTH, LENGTH)
    last = tl.minimum(first + BM, LENGTH) - 1
    low = tl.load(starts + batch * LENGTH + first) // BN * BN
    inside = tl.cdiv(tl.load(starts + batch * LENGTH + last), BN) * BN
    inside = tl.minimum(inside, first)
    queries = _load(q + here, first, LENGTH, STRIDE, BM, D)
    slopes = _load(do + here, first, LENGTH, STRIDE, BM, D)
    row = (batch * HEADS + head) * LENGTH + t
    sums = tl.load(lse + row, t < LENGTH, float("inf"))
    along = tl.load(delta + row, t < LENGTH, 0.0)
    total = tl.zeros((BM, D), tl.float32)
    total = _queries_some(
        total, queries, slopes, sums, along, k, v, begins, first, low, inside,
        SCALE, LENGTH, KV_STRIDE, BM, BN, D, True,
    )  # fmt: skip
    total = _queries_some(
        total, queries, slopes, sums, along, k, v, begins, first, tl.maximum(low, inside), first,
        SCALE, LENGTH, KV_STRIDE, BM, BN, D, False,
    )  # fmt: skip
    total = _queries_some(
        total, queries, slopes, sums, along, k, v, begins, first, first, last + 1,
        SCALE, LENGTH, KV_STRIDE, BM, BN, D, True,
    )  # fmt: skip
    _store(dq + here, total * OUTER, first, LENGTH, STRIDE, BM, D)


@triton.jit
def _keys_some(
    dk, dv, k, v, q, do, lse, delta, starts, first, low, high, SCALE: tl.constexpr,
    LENGTH: tl.constexpr, STRIDE: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    D: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    s = first + tl.arange(0, BN)
    for begin in range(low, high, BM):
        t = begin + tl.arange(0, BM)
        queries = _load(q, begin, LENGTH, STRIDE, BM, D)
        slopes = _load(do, begin, LENGTH, STRIDE, BM, D)
        sums = tl.load(lse + t, t < LENGTH, float("inf"))
        weights = tl.math.exp2(tl.dot(k, tl.trans(queries)) * SCALE - sums[None, :])
        if MASKED:
            begins = tl.load(starts + t, t < LENGTH, LENGTH)
            seen = (s[:, None] <= t[None, :]) & (s[:, None] >= begins[None, :])
            weights = tl.where(seen, weights, 0.0)
        dv = tl.dot(weights.to(slopes.dtype), slopes, dv)
        along = tl.load(delta + t, t < LENGTH, 0.0)
        bent = weights * (tl.dot(v, tl.trans(slopes)) - along[None, :])
        dk = tl.dot(bent.to(queries.dtype), queries, dk)
    return dk, dv


@triton.jit
def _key_gradients(
    q, k, v, starts, ends, do, lse, delta, dk, dv,
    SCALE: tl.constexpr, LENGTH: tl.constexpr, HEADS: tl.constexpr, KV_HEADS: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, D: tl.constexpr, OUTER: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0) * BN
    batch = (tl.program_id(1) // KV_HEADS).to(tl.int64)
    shared = tl.program_id(1) % KV_HEADS
    STRIDE: tl.constexpr = HEADS * D
    KV_STRIDE: tl.constexpr = KV_HEADS * D
    MANY: tl.constexpr = HEADS // KV_HEADS
    here = batch * LENGTH * KV_STRIDE + shared * D
    keys = _load(k + here, first, LENGTH, KV_STRIDE, BN, D)
    values = _load(v + here, first, LENGTH, KV_STRIDE, BN, D)
    starts += batch * LENGTH
    ends += batch * LENGTH
    high = tl.load(ends + tl.minimum(first + BN, LENGTH) - 1)
    after = tl.minimum(first + BN, high)
    inside = tl.maximum(tl.load(ends + first) // BM * BM, first + BN)
    total_k = tl.zeros((BN, D), tl.float32)
    total_v = tl.zeros((BN, D), tl.float32)
    for i in range(MANY):
        head = shared * MANY + i
        queries = q + batch * LENGTH * STRIDE + head * D
        slopes = do + batch * LENGTH * STRIDE + head * D
        row = (batch * HEADS + head) * LENGTH
        total_k, total_v = _keys_some(
            total_k, total_v, keys, values, queries, slopes, lse + row, delta + row, starts,
            first, first, after, SCALE, LENGTH, STRIDE, BM, BN, D, True,
        )  # fmt: skip
        total_k, total_v = _keys_some(
            total_k, total_v, keys, values, queries, slopes, lse + row, delta + row, starts,
            first, first + BN, inside, SCALE, LENGTH, STRIDE, BM, BN, D, False,
        )  # fmt: skip
        total_k, total_v = _keys_some(
            total_k, total_v, keys, values, queries, slopes, lse + row, delta + row, starts,
            first, inside, high, SCALE, LENGTH, STRIDE, BM, BN, D, True,
        )  # fmt: skip
    _store(dk + here, total_k * OUTER, first, LENGTH, KV_STRIDE, BN, D)
    _store(dv + here, total_v, first, LENGTH, KV_STRIDE, BN, D)


def obstacle(q: Array) -> str | None:
    """Why the kernels cannot take these arguments; None if they can."""
    if q.shape[-1] not in HEAD_DIMS:
        return f"a head has {q.shape[-1]} channels, and the kernels are for {HEAD_DIMS}"
    if q.dtype.itemsize != 2:
        return f"it multiplies 16-bit operands, not {q.dtype}"
    return None


def forward(q: Array, k: Array, v: Array, starts: Array) -> tuple[Array, Array]:
    """The output, as q, and lse (batch, heads, length), FP32, in base two.

    Args:
      q: (batch, length, heads, head_dim); k and v the same with their heads.
      starts: (batch, length), int32, the first token of each token's document.
    """
    return _calls(compute_capability())[0](q, k, v, starts)


def backward(
    q: Array, k: Array, v: Array, starts: Array, ends: Array, out: Array, lse: Array, do: Array
) -> tuple[Array, Array, Array]:
    """Gradients of q, k and v; `ends` is one past the last token of each token's document."""
    return _calls(compute_capability())[1](q, k, v, starts, ends, out, lse, do)


@functools.cache
def _calls(capability: int) -> tuple[Any, Any]:
    """Forward and backward, split over devices by the batch and by heads with their keys'."""
    q, k, row, lse = "b.h.", "b.g.", "b.", "bh."
    arguments = (q, k, k, row)
    return (
        sequential_vmap(
            splitting(functools.partial(_output, capability), arguments, (q, lse), groups_of=1)
        ),
        sequential_vmap(
            splitting(
                functools.partial(_gradients, capability),
                (*arguments, row, q, lse, q),
                (q, k, k),
                groups_of=1,
            )
        ),
    )


def _output(capability: int, q: Array, k: Array, v: Array, starts: Array) -> tuple[Array, ...]:
    batch, length, heads, _ = q.shape
    tiles, meta = _meta(FORWARD, q, k, capability)
    return tuple(
        jax_triton.triton_call(
            *(q, k, v, starts),
            kernel=_forward,
            out_shape=(
                jax.ShapeDtypeStruct(q.shape, q.dtype),
                jax.ShapeDtypeStruct((batch, heads, length), jnp.float32),
            ),
            grid=(math.ceil(length / tiles.queries), batch * heads),
            **meta,
        )
    )


def _gradients(
    capability: int, q: Array, k: Array, v: Array, starts: Array, ends: Array, *kept: Array
) -> tuple[Array, ...]:
    out, lse, do = kept
    batch, length, heads, head_dim = q.shape
    outer = {"OUTER": head_dim**-0.5}
    products = do.astype(jnp.float32) * out.astype(jnp.float32)
    delta = jnp.swapaxes(jnp.sum(products, axis=-1), 1, 2)
    tiles, meta = _meta(QUERIES, q, k, capability)
    dq = jax_triton.triton_call(
        *(q, k, v, starts, do, lse, delta),
        kernel=_query_gradients,
        out_shape=jax.ShapeDtypeStruct(q.shape, q.dtype),
        grid=(math.ceil(length / tiles.queries), batch * heads),
        **outer,
        **meta,
    )
    tiles, meta = _meta(KEYS, q, k, capability)
    dk, dv = jax_triton.triton_call(
        *(q, k, v, starts, ends, do, lse, delta),
        kernel=_key_gradients,
        out_shape=[jax.ShapeDtypeStruct(k.shape, k.dtype)] * 2,
        grid=(math.ceil(length / tiles.keys), batch * k.shape[2]),
        **outer,
        **meta,
    )
    return dq, dk, dv


def _meta(table: tuple[Tiles, Tiles], q: Array, k: Array, capability: int) -> tuple[Tiles, dict]:
    _, length, heads, head_dim = q.shape
    tiles = table[head_dim > 64]
    return tiles, {
        "num_warps": tiles.warps,
        "num_stages": tiles.stages,
        "compute_capability": capability,
        "SCALE": head_dim**-0.5 * LOG2_E,
        "LENGTH": length,
        "HEADS": heads,
        "KV_HEADS": k.shape[2],
        "BM": tiles.queries,
        "BN": tiles.keys,
        "D": head_dim,
    }

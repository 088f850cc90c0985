"""Causal attention with grouped queries.

Query head i reads key/value head i // (heads / kv_heads), scores are scaled by head_dim^-0.5, and
the softmax is FP32. There is no bias, no norm of queries and keys and, in the hybrids, no notion
of position (the Mamba layers know the order); `positions = "rope"` adds one.

The linears are a recipe's business; the core (scores, softmax, weighted sum) stays high.
"""

from __future__ import annotations

import functools
from typing import Literal, cast

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from nvfp4_jax.models import rope, segments
from nvfp4_jax.models.config import HybridConfig
from nvfp4_jax.models.initialization import residual_sigma
from nvfp4_jax.models.linear import linear
from nvfp4_jax.models.pieces import in_pieces
from nvfp4_jax.models.placement import place
from nvfp4_jax.models.product import accumulator, contract
from nvfp4_jax.models.target import choose

BLOCKS = 4  # of queries, in plain operations
HEADS = ("batch", "whole", "heads", "within")


class Attention(nnx.Module):
    """x (batch, length, hidden) to the same shape."""

    def __init__(
        self, config: HybridConfig, *, dtype: DTypeLike, param_dtype: DTypeLike, rngs: nnx.Rngs
    ):
        common = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        sigma = config.init_sigma
        queries = config.attention_heads * config.head_dim
        keys = config.kv_heads * config.head_dim
        self.head_dim = config.head_dim
        self.rope_theta = config.rope_theta if config.positions == "rope" else None
        self.q = linear(config.hidden, queries, sigma=sigma, **common)
        self.k = linear(config.hidden, keys, sigma=sigma, **common)
        self.v = linear(config.hidden, keys, sigma=sigma, **common)
        self.o = linear(queries, config.hidden, sigma=residual_sigma(config), **common)

    def __call__(self, x: Array, segment_ids: Array | None = None) -> Array:
        """segment_ids (batch, length): tokens attend within their own document only."""
        batch, length, _ = x.shape
        q, k, v = (
            place(layer(x).reshape(batch, length, -1, self.head_dim), *HEADS)
            for layer in (self.q, self.k, self.v)
        )
        mixed = in_pieces(self._mix, (q, 2), (k, 2), (v, 2), (segment_ids, None), result=2)
        mixed = mixed.reshape(batch, length, -1)
        return self.o(place(mixed, "batch", "length", "features"))

    def _mix(self, q: Array, k: Array, v: Array, segment_ids: Array | None) -> Array:
        """Attention of some heads, or all, which know their positions if the model has any."""
        if self.rope_theta is not None:
            position = jnp.arange(q.shape[1])[None]
            if segment_ids is not None:
                position = segments.positions(segment_ids)
            q, k = (rope.rotate(part, position, self.rope_theta) for part in (q, k))
        return attend(q, k, v, segment_ids)


def attend(
    q: Array,
    k: Array,
    v: Array,
    segment_ids: Array | None = None,
    *,
    implementation: Literal["xla", "cudnn", "triton"] | None = None,
) -> Array:
    """softmax(q k^T / sqrt(head_dim), causal) v.

    Args:
      q: (batch, length, heads, head_dim).
      k, v: (batch, length, kv_heads, head_dim).
      segment_ids: (batch, length), as from `segments.number`; other documents are masked.
      implementation: plain operations (`xla`), or a fused kernel that never writes the scores to
        memory: `cudnn`, which knows no documents, or `triton`, which skips what lies outside of
        one. Left out: for 16-bit operands on a GPU `cudnn` without segments and `triton` with
        them, wherever they can run; else `xla`.

    Returns:
      (batch, length, heads, head_dim), the dtype of q.

    Raises:
      ValueError: `cudnn` with segments; `triton` where it cannot run, saying why.
    """
    if implementation == "cudnn" and segment_ids is not None:
        raise ValueError("cudnn's attention would need a mask of length^2: use 'triton' or 'xla'")
    if implementation is None and segment_ids is None:
        fused = jax.default_backend() == "gpu" and q.dtype.itemsize == 2
        implementation = "cudnn" if fused else None
    if implementation == "cudnn":
        return jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation="cudnn")
    if choose(implementation, functools.partial(_obstacle, q), "attention") == "xla":
        return _plain(q, k, v, segment_ids)
    if segment_ids is None:
        segment_ids = jnp.zeros(q.shape[:2], jnp.int32)
    return cast(Array, _fused(q, k, v, *segments.bounds(segment_ids)))


def _obstacle(q: Array) -> str | None:
    from nvfp4_jax.models import attention_triton

    return attention_triton.obstacle(q)


@jax.custom_vjp
def _fused(q: Array, k: Array, v: Array, starts: Array, ends: Array) -> Array:
    return _fused_forward(q, k, v, starts, ends)[0]


def _fused_forward(q: Array, k: Array, v: Array, starts: Array, ends: Array):
    from nvfp4_jax.models import attention_triton

    out, lse = attention_triton.forward(q, k, v, starts)
    return out, (q, k, v, starts, ends, out, lse)


def _fused_backward(kept: tuple[Array, ...], do: Array):
    from nvfp4_jax.models import attention_triton

    q, k, v, starts, ends, out, lse = kept
    dq, dk, dv = attention_triton.backward(q, k, v, starts, ends, out, lse, do)
    return dq, dk, dv, None, None


_fused.defvjp(_fused_forward, _fused_backward)


def _plain(q: Array, k: Array, v: Array, segment_ids: Array | None) -> Array:
    """The definition in plain operations, a few rows of blocks at a time.

    Keys after the last query of a block are never multiplied, which saves 3/8 of the work with
    four blocks; the queries that share a key stand in one matrix.
    """
    batch, length, _, head_dim = q.shape
    groups = k.shape[2]
    grouped = jnp.moveaxis(q.reshape(batch, length, groups, -1, head_dim), 1, 3)
    keys, values = jnp.moveaxis(k, 1, 2), jnp.moveaxis(v, 1, 2)
    size = -(-length // BLOCKS)
    rows = []
    for start in range(0, length, size):
        stop = min(start + size, length)
        causal = jnp.arange(start, stop)[:, None] >= jnp.arange(stop)[None]
        allowed = causal[None, None, None]
        if segment_ids is not None:
            same = segment_ids[:, start:stop, None] == segment_ids[:, None, :stop]
            allowed = allowed & same[:, None, None]
        block = grouped[:, :, :, start:stop]
        rows.append(_rows(block, keys[:, :, :stop], values[:, :, :stop], allowed))
    mixed = jnp.concatenate(rows, axis=3)
    return jnp.moveaxis(mixed, 3, 1).reshape(q.shape)


def _rows(q: Array, k: Array, v: Array, allowed: Array) -> Array:
    """Attention of some queries: q (b, g, r, t, h), k and v (b, g, s, h), allowed (..., t, s)."""
    batch, groups, _, _, head_dim = q.shape
    wide = accumulator(q.dtype)
    matrix = q.reshape(batch, groups, -1, head_dim)
    scores = contract("bgqh,bgsh->bgqs", matrix, k, q.dtype, wide) * head_dim**-0.5
    scores = jnp.where(allowed, scores.reshape(*q.shape[:4], -1), -jnp.inf)
    weights = _softmax(scores).reshape(*matrix.shape[:3], -1)
    return contract("bgqs,bgsh->bgqh", weights, v, q.dtype, q.dtype).reshape(q.shape)


@jax.custom_vjp
def _softmax(scores: Array) -> Array:
    """Over the last axis, as a product with 1 / sum.

    XLA turns a division by a broadcast number into that product for some shapes and not for others,
    and a row's bits would depend on how many rows there are.
    """
    raised = jnp.exp(scores - jnp.max(scores, axis=-1, keepdims=True))
    return raised * (1 / jnp.sum(raised, axis=-1, keepdims=True))


def _softmax_forward(scores: Array) -> tuple[Array, Array]:
    weights = _softmax(scores)
    return weights, weights


def _softmax_backward(weights: Array, slope: Array) -> tuple[Array]:
    return (weights * (slope - jnp.sum(weights * slope, axis=-1, keepdims=True)),)


_softmax.defvjp(_softmax_forward, _softmax_backward)

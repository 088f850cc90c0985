"""Causal attention with grouped queries.

Query head i reads key/value head i // (heads / kv_heads), scores are scaled by head_dim^-0.5, and
the softmax is FP32. There is no bias, no norm of queries and keys and, in the hybrids, no notion
of position (the Mamba layers know the order); `positions = "rope"` adds one.

The linears are a recipe's business; the core (scores, softmax, weighted sum) stays high.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from nvfp4_jax.models import rope, segments
from nvfp4_jax.models.config import HybridConfig
from nvfp4_jax.models.initialization import residual_sigma
from nvfp4_jax.models.linear import linear
from nvfp4_jax.models.product import accumulator, contract


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
            layer(x).reshape(batch, length, -1, self.head_dim) for layer in (self.q, self.k, self.v)
        )
        if self.rope_theta is not None:
            place = jnp.arange(length)[None]
            if segment_ids is not None:
                place = segments.positions(segment_ids)
            q, k = (rope.rotate(part, place, self.rope_theta) for part in (q, k))
        return self.o(attend(q, k, v, segment_ids).reshape(batch, length, -1))


def attend(
    q: Array,
    k: Array,
    v: Array,
    segment_ids: Array | None = None,
    *,
    implementation: Literal["xla", "cudnn"] | None = None,
) -> Array:
    """softmax(q k^T / sqrt(head_dim), causal) v.

    Args:
      q: (batch, length, heads, head_dim).
      k, v: (batch, length, kv_heads, head_dim).
      segment_ids: (batch, length); other documents are masked.
      implementation: `cudnn`, a fused kernel that never writes the scores to memory, or `xla`,
        plain operations. Left out: `cudnn` for 16-bit operands without segments on a GPU.

    Returns:
      (batch, length, heads, head_dim), the dtype of q.
    """
    if implementation is None:
        fused = jax.default_backend() == "gpu" and q.dtype.itemsize == 2 and segment_ids is None
        implementation = "cudnn" if fused else "xla"
    if implementation == "xla":
        return _plain(q, k, v, segment_ids)
    mask = None if segment_ids is None else _same(segment_ids)[:, None]
    return jax.nn.dot_product_attention(q, k, v, mask=mask, is_causal=True, implementation="cudnn")


def _plain(q: Array, k: Array, v: Array, segment_ids: Array | None) -> Array:
    """The definition, written so that the queries of a group share one product with their keys."""
    batch, length, heads, head_dim = q.shape
    kv_heads = k.shape[2]
    wide = accumulator(q.dtype)
    grouped = q.reshape(batch, length, kv_heads, heads // kv_heads, head_dim)
    scores = contract("btgrh,bsgh->bgrts", grouped, k, q.dtype, wide) * head_dim**-0.5
    allowed = jnp.tril(jnp.ones((length, length), bool))
    if segment_ids is not None:
        allowed = allowed & _same(segment_ids)[:, None, None]
    weights = jax.nn.softmax(jnp.where(allowed, scores, -jnp.inf), axis=-1)
    mixed = contract("bgrts,bsgh->btgrh", weights, v, q.dtype, q.dtype)
    return mixed.reshape(q.shape)


def _same(segment_ids: Array) -> Array:
    """(batch, length, length): whether two tokens belong to one document."""
    return segment_ids[:, :, None] == segment_ids[:, None, :]

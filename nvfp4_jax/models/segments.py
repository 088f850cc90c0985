"""Packed documents: several texts in one row, none of which may see another.

A row of `segment_ids` names the document of each token, such as 7 7 7 8 8 9. Attention masks by
it, the convolution and the state-space scan are cut by it. All of them compare ids for equality,
so an id that came back later in the row (7 8 7) would join two documents; `number` renames the
runs 0, 1, 2, ... once at the entrance, which makes that impossible.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array, lax


def number(segment_ids: Array) -> Array:
    """(batch, length) of any integers to the count of boundaries up to each token, from 0."""
    changes = jnp.diff(segment_ids, axis=1) != 0
    return jnp.pad(jnp.cumsum(changes, axis=1, dtype=jnp.int32), ((0, 0), (1, 0)))


def positions(segment_ids: Array) -> Array:
    """(batch, length): each token's place within its own document, from 0."""
    index = jnp.broadcast_to(jnp.arange(segment_ids.shape[1]), segment_ids.shape)
    begins = jnp.pad(jnp.diff(segment_ids, axis=1) != 0, ((0, 0), (1, 0)))
    return index - lax.cummax(jnp.where(begins, index, 0), axis=1)


def bounds(segment_ids: Array) -> tuple[Array, Array]:
    """(batch, length), int32: the first token of each token's document, and one past its last."""
    length = segment_ids.shape[1]
    index = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), segment_ids.shape)
    changes = jnp.diff(segment_ids, axis=1) != 0
    first = jnp.pad(changes, ((0, 0), (1, 0)))
    last = jnp.pad(changes, ((0, 0), (0, 1)), constant_values=True)
    starts = lax.cummax(jnp.where(first, index, 0), axis=1)
    return starts, lax.cummin(jnp.where(last, index + 1, length), axis=1, reverse=True)

"""Cross-entropy that never holds all the logits.

With 131,072 words the FP32 logits of 8192 tokens take 4.3 GB, and their gradient as much again.
So the tokens go through the head in chunks, each rematerialized in the backward pass: a chunk of
logits lives twice for a moment, all of them never. A scan adds up the head's weight gradient over
the chunks in FP32, the type of its master weight.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

LOGITS_IN_MEMORY = 2**26  # of one chunk: 256 MiB of FP32; a small vocabulary needs one chunk only


def cross_entropy_sum(
    head: Callable[[jax.Array], jax.Array],
    hidden: jax.Array,
    targets: jax.Array,
    mask: jax.Array,
    *,
    vocabulary: int,
    logits_in_memory: int = LOGITS_IN_MEMORY,
) -> jax.Array:
    """The sum over unmasked tokens of -log softmax(head(hidden))[target], FP32, in nats.

    Args:
      head: hidden (tokens, width) to logits (tokens, vocabulary); called once a chunk.
      hidden: (..., width).
      targets, mask: (...): int32 and boolean.
      vocabulary: the width of the logits, from which the chunk's length follows.
      logits_in_memory: the most logits a chunk may have.
    """
    tokens = targets.size
    chunk = min(max(logits_in_memory // vocabulary, 1), tokens)
    count = -(-tokens // chunk)
    chunks = [
        _in_chunks(array, count, chunk)
        for array in (hidden.reshape(tokens, -1), targets.reshape(-1), mask.reshape(-1))
    ]

    def one(hidden: jax.Array, targets: jax.Array, mask: jax.Array) -> jax.Array:
        logits = head(hidden).astype(jnp.float32)
        chosen = jnp.take_along_axis(logits, targets[:, None], axis=-1)[:, 0]
        losses = jax.nn.logsumexp(logits, axis=-1) - chosen
        return jnp.sum(jnp.where(mask, losses, 0.0))

    if count == 1:
        return one(*(array[0] for array in chunks))
    step = jax.checkpoint(one)
    total, _ = jax.lax.scan(
        lambda total, xs: (total + step(*xs), None), jnp.zeros((), jnp.float32), chunks
    )
    return total


def _in_chunks(array: jax.Array, count: int, chunk: int) -> jax.Array:
    """(tokens, ...) to (count, chunk, ...), the last chunk padded with masked zeros."""
    missing = count * chunk - array.shape[0]
    padded = jnp.pad(array, [(0, missing)] + [(0, 0)] * (array.ndim - 1))
    return padded.reshape(count, chunk, *array.shape[1:])

"""Random keys by name, so that one layer's numbers never depend on another's.

A key is folded from what the number is *for*: run seed, step, microbatch, the layer's path, and
then (in `dot_general`) the GEMM and the operand. There is no shared counter that an added or
removed layer could shift: changing layer 1's precision leaves layer 2's bits as they were, and a
layer met inside a scan draws the bits it would draw unrolled.

The path enters as the first 32 bits of its SHA-256, a number that is the same in every process
(Python's own `hash` is not) and that can be gathered from a table by a traced index.
"""

from __future__ import annotations

import hashlib

import jax
import numpy as np


def layer_hash(path: str) -> np.uint32:
    """The first 32 bits of sha256(path), big-endian; `path` as recipes write it.

    >>> hex(layer_hash("blocks_3/mlp/up"))
    '0xa3abc20a'
    """
    return np.uint32(int.from_bytes(hashlib.sha256(path.encode()).digest()[:4], "big"))


def layer_key(key: jax.Array, path: str) -> jax.Array:
    """`key`, already folded with step and microbatch, folded with the layer's path.

    Args:
      key: typed (`jax.random.key`) or raw (`jax.random.PRNGKey`), may be traced.
      path: the layer's path, such as `blocks_3/mlp/up`.
    """
    return jax.random.fold_in(key, layer_hash(path))


def microbatch_key(seed_key: jax.Array, step: jax.Array, microbatch: jax.Array) -> jax.Array:
    """The key of one microbatch of one step: the run's key folded with both, in this order."""
    return jax.random.fold_in(jax.random.fold_in(seed_key, step), microbatch)

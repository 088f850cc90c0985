"""Cross-entropy that never holds all the logits.

With 131,072 words the FP32 logits of 8192 tokens take 4.3 GB, and their gradient as much again.
So the tokens go through the head in chunks, and each chunk gives its gradients at once:

    dlogits = softmax(logits) - onehot(target)
    dhidden = dlogits w^T,    dw = sum over chunks of hidden^T dlogits     in FP32, as w is

What is left for the backward pass is to multiply them by the gradient of the loss, one number.
Nothing of the size of the logits outlives its chunk, and no logits are computed twice.

On a mesh every device goes through its own tokens, with the head's weight gathered once, and the
FP32 gradients of that weight are added up over the devices once, at the end.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from nvfp4_jax.models.pieces import in_pieces
from nvfp4_jax.models.target import rounded
from nvfp4_jax.training.gathering import whole
from nvfp4_jax.training.sharding import parameter_sharding, sharding

# Of one chunk: 1 GiB of FP32. Each chunk reads the head's weight and adds to its gradient, which
# for 131,072 words of width 1280 is 2.3 GB of traffic: with a quarter of this, 4% of a step.
LOGITS_IN_MEMORY = 2**28
Head = Callable[[Any, jax.Array], jax.Array]


def cross_entropy_sum(
    head: Head,
    weights: Any,
    hidden: jax.Array,
    targets: jax.Array,
    mask: jax.Array,
    *,
    vocabulary: int,
    logits_in_memory: int = LOGITS_IN_MEMORY,
    mesh: Mesh | None = None,
) -> jax.Array:
    """The sum over unmasked tokens of -log softmax(head(weights, hidden))[target], FP32, in nats.

    Args:
      head: (weights, hidden (tokens, width)) to logits (tokens, vocabulary); called once a chunk.
      weights: of the head, a pytree.
      hidden: (..., width); on a mesh (batch, length, width).
      targets, mask: (...): int32 and boolean.
      vocabulary: the width of the logits, from which the chunk's length follows.
      logits_in_memory: the most logits a chunk may have; on a mesh, those of one device's tokens.
      mesh: the training mesh, to go through each device's tokens by themselves; None for one
        device, or a head that must see all tokens at once.
    """
    if mesh is not None and mesh.size > 1:
        return _on_mesh(head, weights, hidden, targets, mask, vocabulary, logits_in_memory, mesh)
    tokens = targets.size
    chunk = min(max(logits_in_memory // vocabulary, 1), tokens)
    count = -(-tokens // chunk)
    chunks = [
        _in_chunks(array, count, chunk)
        for array in (hidden.reshape(tokens, -1), targets.reshape(-1), mask.reshape(-1))
    ]

    if count == 1:
        hidden, targets, mask = (array[0] for array in chunks)
        return _loss_sum(head(weights, hidden), targets, mask)
    return cast(jax.Array, _in_turn(head, weights, *chunks))


def _on_mesh(head, weights, hidden, targets, mask, vocabulary, logits_in_memory, mesh) -> jax.Array:
    tokens = sharding(mesh, "batch", "between").spec
    sizes = {"vocabulary": vocabulary, "logits_in_memory": logits_in_memory}

    stored = jax.tree.map(lambda w: parameter_sharding(mesh, "head/kernel", w.shape).spec, weights)

    def local(parts: Any, hidden: jax.Array, *arrays: jax.Array) -> jax.Array:
        gathered = jax.tree.map(lambda w, spec: whole(w, spec, hidden.dtype), parts, stored)
        return cross_entropy_sum(head, gathered, hidden, *arrays, **sizes)[None]

    each = jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(stored, tokens, tokens, tokens),
        out_specs=PartitionSpec(mesh.axis_names),
        check_vma=False,
    )
    return jnp.sum(each(weights, hidden, targets, mask))


def _loss_sum(logits: jax.Array, targets: jax.Array, mask: jax.Array) -> jax.Array:
    operands = (logits.astype(jnp.float32), None), (targets, None), (mask, None)
    return in_pieces(_cross_entropy, *operands, result=None)


@jax.custom_vjp
def _cross_entropy(logits: jax.Array, targets: jax.Array, mask: jax.Array) -> jax.Array:
    """Of FP32 logits (tokens, vocabulary), summed over unmasked tokens.

    The rule below is what autodiff would find, without its scatter into zeros for the one logit
    of each token that was chosen.
    """
    return _cross_entropy_forward(logits, targets, mask)[0]


def _cross_entropy_forward(logits: jax.Array, targets: jax.Array, mask: jax.Array):
    chosen = jnp.take_along_axis(logits, targets[:, None], axis=-1)[:, 0]
    normalizer = _normalizer(logits)
    total = jnp.sum(jnp.where(mask, normalizer - chosen, 0.0))
    return total, (logits, normalizer, targets, mask)


def _normalizer(logits: jax.Array) -> jax.Array:
    """log sum exp of a row; `jax.nn.logsumexp` in which the sum is a piece of its own."""
    top = jnp.max(logits, axis=-1, keepdims=True)
    top = jnp.where(jnp.isfinite(top), top, 0.0)
    return jnp.log(rounded(jnp.sum(jnp.exp(logits - top), axis=-1))) + top[:, 0]


def _cross_entropy_backward(kept: tuple[jax.Array, ...], slope: jax.Array):
    logits, normalizer, targets, mask = kept
    probabilities = jnp.exp(logits - normalizer[:, None])
    words = jax.lax.broadcasted_iota(targets.dtype, logits.shape, 1)
    onehot = (words == targets[:, None]).astype(jnp.float32)
    return jnp.where(mask, slope, 0.0)[:, None] * (probabilities - onehot), None, None


_cross_entropy.defvjp(_cross_entropy_forward, _cross_entropy_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _in_turn(
    head: Head,
    weights: Any,
    hidden: jax.Array,
    targets: jax.Array,
    mask: jax.Array,
) -> jax.Array:
    """The sum over chunks (count, chunk, ...), head(weights, hidden) being a chunk's logits."""

    def step(total: jax.Array, xs: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
        hidden, targets, mask = xs
        return total + _loss_sum(head(weights, hidden), targets, mask), None

    return jax.lax.scan(step, jnp.zeros((), jnp.float32), (hidden, targets, mask))[0]


def _in_turn_forward(head, weights, hidden, targets, mask):
    def step(carry: tuple[jax.Array, Any], xs: tuple[jax.Array, ...]):
        total, dweights = carry
        hidden, targets, mask = xs

        def loss(weights: Any, hidden: jax.Array) -> jax.Array:
            return _loss_sum(head(weights, hidden), targets, mask)

        value, gradients = jax.value_and_grad(loss, argnums=(0, 1))(weights, hidden)
        return (total + value, jax.tree.map(jnp.add, dweights, gradients[0])), gradients[1]

    zeros = (jnp.zeros((), jnp.float32), jax.tree.map(jnp.zeros_like, weights))
    (total, dweights), dhidden = jax.lax.scan(step, zeros, (hidden, targets, mask))
    return total, (dweights, dhidden)


def _in_turn_backward(head, gradients, slope: jax.Array):
    def scaled(gradient: jax.Array) -> jax.Array:
        return (slope * gradient.astype(jnp.float32)).astype(gradient.dtype)

    return (*jax.tree.map(scaled, gradients), None, None)


_in_turn.defvjp(_in_turn_forward, _in_turn_backward)


def _in_chunks(array: jax.Array, count: int, chunk: int) -> jax.Array:
    """(tokens, ...) to (count, chunk, ...), the last chunk padded with masked zeros."""
    missing = count * chunk - array.shape[0]
    padded = jnp.pad(array, [(0, missing)] + [(0, 0)] * (array.ndim - 1))
    return padded.reshape(count, chunk, *array.shape[1:])

"""Two linears with relu^2 between them, which hand on what is known of the largest magnitudes.

    u = x w_up,    r = relu(u)^2,    y = r w_down          backward: du = 2 relu(u) dr

A quantizer wants a tensor's largest magnitude before it begins. Found on its own that is a pass
over memory; whatever computes the tensor has all of it at hand. Here relu^2 is a kernel that finds
the amaxes of r, as `down` will quantize it, and going back those of du, as `up` will, the rotated
ones too. r's go with r. du's have to get from the backward pass of one operation into that of
another, and what travels there is cotangents. So `up` has a second result, a *slot*, which nobody
reads; relu^2 takes it, and gives as the slot's cotangent the amaxes of du:

    forward      up: x -> u, slot      relu^2: u, slot -> r, amaxes of r      down: r, amaxes -> y
    backward     up: du, amaxes of du -> dx      relu^2: dr -> du, the slot's      down: dy -> dr

For it to be true nobody else may have a part in u or r; so all three are one function. Not a bit
of any result changes. Where there is no such kernel, `relu_squared_mlp` says so and does nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import NamedSharding
from jaxtyping import Array, Float32

from nvfp4_jax.axes import explicit_mesh, varying
from nvfp4_jax.dot_general import (
    DGRAD_GRAD,
    FPROP_INPUT,
    WGRAD_GRAD,
    WGRAD_INPUT,
    Call,
    backward,
    forward,
    linear,
)
from nvfp4_jax.honoured import check_gathered
from nvfp4_jax.kernels.request import Request
from nvfp4_jax.kernels.select import select
from nvfp4_jax.operands import Amaxes, Use, quantizer_of, request_for, weight_amaxes
from nvfp4_jax.precision import LinearPrecision
from nvfp4_jax.quantizer import Quantizer

INPUTS, GRADS = (FPROP_INPUT, WGRAD_INPUT), (DGRAD_GRAD, WGRAD_GRAD)
Signs = tuple[Float32[Array, "n"] | None, ...]


class Bound(NamedTuple):
    """How a linear multiplies: the arguments of `make_dot_general` of these names."""

    precision: LinearPrecision
    key: Array | None = None
    weight_amax: Array | None = None
    name: str | None = None
    gathered: NamedSharding | None = None

    @property
    def amaxes(self) -> Amaxes:
        """What is known of the weight."""
        return weight_amaxes(self.precision, self.weight_amax)

    def call(self, x: Array) -> Call:
        """What is static about multiplying x, its last axis with the weight's first."""
        numbers = (((x.ndim - 1,), (0,)), ((), ()))
        return Call(self.precision, numbers, x.dtype, None, None, self.name, self.gathered)


class Asked(NamedTuple):
    """What will be made of a matrix: quantizer and contracted axis of each copy; hashable."""

    copies: tuple[tuple[Quantizer, int], ...]

    def requests(self, signs: Signs) -> list[Request]:
        """As kernels are asked for it."""
        pairs = zip(self.copies, signs, strict=True)
        return [Request(quantizer, axis, None, own) for (quantizer, axis), own in pairs]


def relu_squared_mlp(
    x: Array,
    w_up: Array,
    w_down: Array,
    up: Bound,
    down: Bound,
    inside: Callable[[Array], Array] = lambda u: u,
) -> Array | None:
    """relu(x w_up)^2 w_down with amaxes handed on; None where that cannot be done.

    It can on a GPU that has the fused kernels, for a bf16 x, where both linears quantize their
    input and gradient as the kernels can, no mesh axes are explicit, and no `shard_map` keeps track
    of what varies.

    Args:
      x: (..., features in).
      w_up, w_down: the weights, (features in, ffn) and (ffn, features out).
      up, down: how they are multiplied.
      inside: applied to u (..., ffn); it may say how u lies, and not change it.

    Returns:
      (..., features out), the bits of one operation after the other.
    """
    if select(None).relu_squared is None or x.dtype != jnp.bfloat16 or x.ndim < 2:
        return None
    if explicit_mesh(x, w_up, w_down) is not None or varying(x):
        return None
    matrix = jax.ShapeDtypeStruct((math.prod(x.shape[:-1]), w_up.shape[1]), x.dtype)
    inputs, signs = _asked(down, INPUTS)
    grads, grad_signs = _asked(up, GRADS)
    if not (_one_kernel(matrix, inputs, signs) and _one_kernel(matrix, grads, grad_signs)):
        return None
    check_gathered(x, w_up, up.gathered)
    check_gathered(x, w_down, down.gathered)
    called = _with_slot(up.call(x), len(grads.copies), x, w_up, up.key, up.amaxes)
    wide, slot = cast(tuple[Array, Array], called)
    bent = _between((inputs, grads), inside(wide), slot, signs, grad_signs)
    r, amaxes = cast(tuple[Array, Array], bent)
    known = {**down.amaxes, **_by_use(down.precision, INPUTS, amaxes)}
    return linear(down.call(r), r, w_down, down.key, known)


def _asked(bound: Bound, uses: tuple[Use, Use]) -> tuple[Asked, Signs]:
    """What is made of (tokens, features) for two uses, that contract features and tokens."""
    requests = [
        request_for(bound.precision, bound.key, use, axis)
        for use, axis in zip(uses, (1, 0), strict=True)
        if quantizer_of(bound.precision, use) is not None
    ]
    return Asked(tuple((r.quantizer, r.axis) for r in requests)), tuple(r.signs for r in requests)


def _one_kernel(matrix: jax.ShapeDtypeStruct, asked: Asked, signs: Signs) -> bool:
    return bool(asked.copies) and select(None).one_kernel(matrix, asked.requests(signs))


def _by_use(precision: LinearPrecision, uses: Sequence[Use], amaxes: Array) -> Amaxes:
    """One amax for each use that quantizes, in order."""
    quantized = [use for use in uses if quantizer_of(precision, use) is not None]
    return dict(zip(quantized, amaxes, strict=True))


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _with_slot(call: Call, size: int, x, w, key, amaxes: Amaxes) -> tuple[Array, Array]:
    """(u, slot) with u = x w. The slot's cotangent is to be the amaxes of u's, as float32."""
    u = cast(Array, linear(call, x, w, key, amaxes))
    return u, _slot(u, size)


def _with_slot_forward(call, size, x, w, key, amaxes):
    u, residuals = forward(call, x, w, key, amaxes)
    return (u, _slot(u, size)), residuals


def _with_slot_backward(call, size, residuals, cotangents):
    du, slot = cotangents
    kept, key, amaxes = residuals
    bits = lax.bitcast_convert_type(slot, jnp.int32)
    known = {**amaxes, **_by_use(call.precision, GRADS, bits)}
    return backward(call, (kept, key, known), du)


_with_slot.defvjp(_with_slot_forward, _with_slot_backward)


def _slot(u: Array, size: int) -> Array:
    """Whose numbers nobody reads. They are u's, so that what is mapped over u maps over them."""
    return jnp.broadcast_to(u.reshape(-1)[:1].astype(jnp.float32), (size,))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _between(
    asked: tuple[Asked, Asked], u: Array, slot: Array, signs: Signs, grad_signs: Signs
) -> tuple[Array, Array]:
    """(relu(u)^2, its amaxes); `asked` and signs are of it and, going back, of u's gradient."""
    return _run(asked[0], signs, u)


def _between_forward(asked, u, slot, signs, grad_signs):
    return _run(asked[0], signs, u), (u, grad_signs)


def _between_backward(asked, kept, cotangents):
    u, grad_signs = kept
    du, amaxes = _run(asked[1], grad_signs, u, cotangents[0])
    return du, lax.bitcast_convert_type(amaxes, jnp.float32), None, None


_between.defvjp(_between_forward, _between_backward)


def _run(asked: Asked, signs: Signs, *tensors: Array) -> tuple[Array, Array]:
    """The kernel on matrices, with features as their columns."""
    u, *dr = (x.reshape(-1, x.shape[-1]) for x in tensors)
    with jax.named_scope("relu_squared"):
        result, amaxes = select(None).relu_squared(u, asked.requests(signs), *dr)
    return result.reshape(tensors[0].shape), amaxes

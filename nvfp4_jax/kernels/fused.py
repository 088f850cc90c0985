"""`implementation="triton"`: quantization in fused GPU kernels, with the bits of `xla`.

In plain XLA a quantizer is several passes over memory: the rotation, the maximum, the rounding,
and the random bits. Here it is two: one read for the largest magnitudes, one for everything else,
and the second writes as many copies as were asked for. Seen by the kernels every tensor is
(batch, rows, columns), and blocks lie along columns or along rows, so the operands of Wgrad,
which contracts tokens, need no transposition.

What the kernels do not cover (formats other than NVFP4, rotations of other lengths, odd axes)
runs as `xla`; `unsupported` says what and why.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, BFloat16, Float, Float32, Int32, UInt

from nvfp4_jax.block_scaled import BlockScaledArray
from nvfp4_jax.kernels import mapped, partitioned, scales, views, xla
from nvfp4_jax.kernels.launch import Copy
from nvfp4_jax.kernels.partitioned import BLOCK
from nvfp4_jax.kernels.request import Operand, Packed, Request
from nvfp4_jax.kernels.scaled_product import scaled_product
from nvfp4_jax.quantizer import Quantizer

__all__ = [
    "ONE_READ",
    "dequantize",
    "from_packed",
    "quantize",
    "random_for",
    "relu_squared",
    "scaled_product",
    "to_operands",
    "to_packed",
]

ONE_READ = True  # whether two copies asked for together cost less than two
dequantize, random_for = xla.dequantize, xla.random_for


def unsupported(quantizer: Quantizer, shape: tuple[int, ...], axis: int) -> str | None:
    """Why no fused kernel does this, or None if one does."""
    if quantizer.format != "nvfp4":
        return f"the fused kernels are for nvfp4, not {quantizer.format}"
    if quantizer.rht not in (0, BLOCK):
        return f"the fused kernels rotate {BLOCK} elements, not {quantizer.rht}"
    if math.prod(shape) == 0:
        return "the tensor is empty"
    axis %= len(shape)
    if quantizer.block != (1, BLOCK) and (len(shape) < 2 or axis < len(shape) - 2):
        return "square blocks lie on the last two axes"
    if quantizer.rounding == "stochastic" and axis < len(shape) - 2:
        return "random bits are counted along the last axis, which is not next to the blocks'"
    return None


def to_operands(
    x: Float[Array, "..."], requests: Sequence[Request], dtype: DTypeLike | None = None
) -> tuple[Operand, ...]:
    """`xla.to_operands`, with up to two copies from one read of `x`."""
    if len(requests) > 1 and not share_a_read(x, requests):
        return tuple(operand for r in requests for operand in to_operands(x, [r], dtype))
    if any(unsupported(r.quantizer, x.shape, r.axis) for r in requests):
        return xla.to_operands(x, requests, dtype)
    seen, round_to_bf16 = views.as_seen(x, dtype)
    view = views.view(seen, requests)
    copies = tuple(views.copy_of(r, x.ndim) for r in requests)
    signs, keys = views.signs_of(requests), views.keys_of(requests)
    static = (copies, round_to_bf16, views.target())
    amax = amax_of(requests, view, signs, *static)
    arrays = _operands(*static)(view, amax, signs, keys)
    return tuple(
        Operand(_unviewed(array, x.shape, r), scales.nvfp4_tensor_scale(bits))
        for array, bits, r in zip(arrays, amax, requests, strict=True)
    )


def quantize(
    x: Float[Array, "..."],
    quantizer: Quantizer,
    axis: int,
    key: Array | None = None,
    signs: Float32[Array, "n"] | None = None,
    random: UInt[Array, "..."] | None = None,
) -> BlockScaledArray:
    """`xla.quantize`; bits drawn already (`random`) are its business alone."""
    if random is not None or unsupported(quantizer, x.shape, axis):
        return xla.quantize(x, quantizer, axis, key, signs, random)
    kept = to_packed(x, Request(quantizer, axis, key, signs))
    return BlockScaledArray(
        xla.codes_of(kept), kept.block_scale, kept.tensor_scale, quantizer, kept.axis
    )


def to_packed(x: Float[Array, "..."], request: Request, dtype: DTypeLike | None = None) -> Packed:
    """`xla.to_packed`, codes and scales from one read."""
    if unsupported(request.quantizer, x.shape, request.axis):
        return xla.to_packed(x, request, dtype)
    seen, round_to_bf16 = views.as_seen(x, dtype)
    view = views.view(seen, [request])
    static = ((views.copy_of(request, x.ndim),), round_to_bf16, views.target())
    signs, keys = views.signs_of([request]), views.keys_of([request])
    amax = amax_of([request], view, signs, *static)
    codes, scale = _packed(*static)(view, amax, signs, keys)
    axis = request.axis % x.ndim
    length = xla.rotated_length(x.shape[axis], request.quantizer)
    tensor_scale = scales.nvfp4_tensor_scale(amax[0])
    codes, scale = (_like(part, x.shape, axis) for part in (codes, scale))
    return Packed(codes, scale, tensor_scale, request.quantizer, axis - x.ndim, length)


def from_packed(kept: Packed) -> Operand:
    """`xla.from_packed`."""
    shape = list(kept.codes.shape)
    shape[kept.axis] = kept.length
    if unsupported(kept.quantizer, tuple(shape), kept.axis):
        return xla.from_packed(kept)
    request = Request(kept.quantizer, kept.axis)
    copy = views.copy_of(request, len(shape))
    parts = [views.view(part, [request]) for part in (kept.codes, kept.block_scale)]
    array = _unpacked(copy, kept.length, views.target())(*parts)
    return Operand(array.reshape(shape), kept.tensor_scale)


def relu_squared(
    u: BFloat16[Array, "rows columns"],
    requests: Sequence[Request],
    dr: BFloat16[Array, "rows columns"] | None = None,
) -> tuple[BFloat16[Array, "rows columns"], Int32[Array, "requests"]]:
    """relu(u)^2, or with `dr` its gradient, and the amax that each request will have of it."""
    copies = tuple(views.copy_of(r, u.ndim) for r in requests)
    tensors = [views.view(x, requests) for x in (u, dr) if x is not None]
    call = _relu_squared(copies, dr is not None, views.target())
    result, amax = call(*tensors, views.signs_of(requests))
    return result.reshape(u.shape), amax


def one_kernel(x: Any, requests: Sequence[Request]) -> bool:
    """Whether the requests, of which there are some, are made of one read of (something like) x."""
    if len(requests) == 1:
        return unsupported(requests[0].quantizer, x.shape, requests[0].axis) is None
    return share_a_read(x, requests)


def amax_of(
    requests: Sequence[Request],
    view: Array,
    signs: Array,
    copies: tuple[Copy, ...],
    round_to_bf16: bool,
    target: int,
) -> Int32[Array, "copies"]:
    """The bits of the largest magnitude of each copy: told by all requests, or found."""
    known = [r.amax for r in requests if r.amax is not None]
    if len(known) == len(requests):
        return jnp.stack(known)
    return _amax_bits(copies, round_to_bf16, target)(view, signs)


@cache
def _amax_bits(copies: tuple[Copy, ...], round_to_bf16: bool, capability: int):
    return mapped.one_at_a_time(partitioned.amax_bits(copies, round_to_bf16, capability))


@cache
def _relu_squared(copies: tuple[Copy, ...], gradient: bool, capability: int):
    return mapped.one_at_a_time(partitioned.relu_squared(copies, gradient, capability))


@cache
def _operands(copies: tuple[Copy, ...], round_to_bf16: bool, capability: int):
    return mapped.one_at_a_time(partitioned.operands(copies, round_to_bf16, capability))


@cache
def _packed(copies: tuple[Copy, ...], round_to_bf16: bool, capability: int):
    return mapped.one_at_a_time(partitioned.packed(copies[0], round_to_bf16, capability))


@cache
def _unpacked(copy: Copy, length: int, capability: int):
    return mapped.one_at_a_time(partitioned.unpacked(copy, length, capability))


def share_a_read(x: Any, requests: Sequence[Request]) -> bool:
    """Whether one kernel can make them all: two copies, on the last two axes, of equal signs."""
    rotated = [r for r in requests if r.quantizer.rht]
    return (
        len(requests) == 2
        and len(rotated) < 2
        and all(r.axis % x.ndim >= x.ndim - 2 for r in requests)
        and not any(unsupported(r.quantizer, x.shape, r.axis) for r in requests)
    )


def _unviewed(array: Array, shape: tuple[int, ...], request: Request) -> Array:
    """The operand in the shape of the tensor, its axis as long as the rotation padded it."""
    axis = request.axis % len(shape)
    length = xla.rotated_length(shape[axis], request.quantizer)
    return array.reshape(*shape[:axis], length, *shape[axis + 1 :])


def _like(part: Array, shape: tuple[int, ...], axis: int) -> Array:
    """A (batch, rows, columns) result with the axes of the tensor; its own length along `axis`."""
    if axis >= len(shape) - 2:
        return part.reshape(*shape[:-2], *part.shape[1:][-len(shape) :])
    return part.reshape(*shape[:axis], part.shape[1], *shape[axis + 1 :])

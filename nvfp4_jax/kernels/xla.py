"""The definition: quantization in plain JAX, readable, and the reference of every other kernel.

Five steps, the same for all formats:

1. the input as exact float32 (rotated, if the quantizer says so);
2. the largest magnitude of every block, and from those of the tensor;
3. scales and multipliers (`scales.py`);
4. y = clip(x * multiplier), rounded to the element format (`rounding.py`);
5. value times scale, for an emulated GEMM, or codes and scales, to be stored.

Everything is arithmetic in float32 on purpose; see `rounding.py` for why there are no casts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float32, UInt

from nvfp4_jax import hadamard, packing, philox, rounding
from nvfp4_jax.block_scaled import BlockScaledArray
from nvfp4_jax.kernels import blocks, scales
from nvfp4_jax.kernels.request import Operand, Packed, Request
from nvfp4_jax.quantizer import Quantizer

ONE_READ = False  # whether two copies asked for together cost less than two
scaled_product = None  # products and their scales are left to XLA
relu_squared = None  # so is what a model computes between them


class Rounded(NamedTuple):
    """Rounded elements in the split view, with the scales that broadcast against them."""

    values: Float32[Array, "..."]
    block_scale: Float32[Array, "..."] | None
    tensor_scale: Float32[Array, ""] | None
    lengths: tuple[int, ...]
    shape: tuple[int, ...]


def quantize(
    x: Float[Array, "..."],
    quantizer: Quantizer,
    axis: int,
    key: Array | None = None,
    signs: Float32[Array, "n"] | None = None,
    random: UInt[Array, "..."] | None = None,
) -> BlockScaledArray:
    """Codes and scales of `x`; `key` for stochastic rounding, `signs` for a rotation.

    `random` are bits drawn already, for an `x` that is not laid out as the tensor they belong to.
    """
    rounded = round_to_format(x, quantizer, axis, key, signs, random)
    data = blocks.join(rounded.values, rounded.lengths, rounded.shape)
    return BlockScaledArray(
        data.astype(quantizer.element.dtype),
        _stored_scale(rounded, quantizer),
        rounded.tensor_scale,
        quantizer,
        axis % x.ndim - x.ndim,
    )


def to_operands(
    x: Float[Array, "..."], requests: Sequence[Request], dtype: DTypeLike | None = None
) -> tuple[Operand, ...]:
    """`x` rounded to `dtype`, then through each request's format: bf16 operands of a GEMM.

    Element times block scale has at most 6 significant bits in NVFP4 and 4 in MX: exact in bf16.
    With FP32 block scales (fp8 1x128, 128x128) it is rounded once to bf16, an error of 2^-9 beside
    E4M3's own 2^-4.
    """
    x = x if dtype is None else x.astype(dtype)
    return tuple(_to_operand(x, request) for request in requests)


def _to_operand(x: Array, request: Request) -> Operand:
    values, block_scale, tensor_scale, lengths, shape = round_to_format(
        x, request.quantizer, request.axis, request.key, request.signs, amax=request.amax
    )
    scaled = values if block_scale is None else values * block_scale
    return Operand(blocks.join(scaled.astype(jnp.bfloat16), lengths, shape), tensor_scale)


def to_packed(x: Float[Array, "..."], request: Request, dtype: DTypeLike | None = None) -> Packed:
    """`x` rounded to `dtype` and quantized, at its stored size: NVFP4 has 4.5 bits an element."""
    x = x if dtype is None else x.astype(dtype)
    q = quantize(x, request.quantizer, request.axis, request.key, request.signs)
    length, data = q.shape[q.axis], q.data
    if data.dtype == jnp.float4_e2m1fn:
        _, block = request.quantizer.block or (1, 1)
        padding = [(0, 0)] * x.ndim
        padding[q.axis] = (0, -length % max(2, block))
        nibbles = jnp.moveaxis(jnp.pad(data, padding), q.axis, -1)
        data = jnp.moveaxis(packing.pack(nibbles), -1, q.axis)
    return Packed(data, q.block_scale, q.tensor_scale, q.quantizer, q.axis, length)


def from_packed(kept: Packed) -> Operand:
    """The operand that `to_operands` would have made of the same tensor, bit for bit."""
    q = BlockScaledArray(codes_of(kept), kept.block_scale, None, kept.quantizer, kept.axis)
    return Operand(dequantize(q, jnp.bfloat16), kept.tensor_scale)


def codes_of(kept: Packed) -> Array:
    """One code an element, in the element's dtype and without the padding of the packed ones."""
    data, axis = kept.codes, kept.axis
    if data.dtype != jnp.uint8:
        return data
    data = jnp.moveaxis(packing.unpack(jnp.moveaxis(data, axis, -1)), -1, axis)
    return lax.slice_in_dim(data, 0, kept.length, axis=axis % data.ndim)


def dequantize(q: BlockScaledArray, dtype=jnp.float32) -> Array:
    """(value * block scale) * tensor scale in float32, cast to `dtype` at the end."""
    x = q.data.astype(jnp.float32)
    if q.block_scale is not None:
        lengths = blocks.block_lengths(q.quantizer, x.shape, q.axis)
        scale = blocks.expand_scale(_float32_scale(q.block_scale), lengths)
        x = blocks.join(blocks.split(x, lengths) * scale, lengths, x.shape)
    if q.tensor_scale is not None:
        x = x * q.tensor_scale
    return x.astype(dtype)


def round_to_format(
    x, quantizer: Quantizer, axis: int, key=None, signs=None, random=None, amax=None
) -> Rounded:
    """Steps 1 to 4: every element rounded, with its scales; all in float32.

    `amax`, the bits of the tensor's largest magnitude, spares the search where it is known.
    """
    random = random_for(x, quantizer, axis, key) if random is None else random
    x = rotated(x, quantizer, axis, signs) if quantizer.rht else exact_float32(x)
    lengths = blocks.block_lengths(quantizer, x.shape, axis)
    split = blocks.split(x, lengths)
    # Stored, since fused into what follows they would be computed for every element of a block.
    block_scale, tensor_scale, multiplier = lax.optimization_barrier(
        _scales(split, quantizer, blocks.inner_axes(lengths), amax)
    )
    limit = jnp.float32(quantizer.element.max)
    y = jnp.clip(split * multiplier, -limit, limit)
    if random is None:
        values = rounding.round_nearest(y, quantizer.element)
    else:
        values = rounding.round_stochastic(y, blocks.split(random, lengths), quantizer.element)
    return Rounded(values, block_scale, tensor_scale, lengths, x.shape)


def exact_float32(x: Float[Array, "..."]) -> Float32[Array, "..."]:
    """`x` in float32, keeping the rounding it had.

    Under jit XLA may hand us the float32 from before a producer's cast to bf16. Rounding again is
    free of effect on what is already bf16, and it is not deleted.
    """
    if x.dtype == jnp.bfloat16:
        return to_bf16_values(x.astype(jnp.float32))
    if x.dtype.itemsize < 4:
        x = lax.optimization_barrier(x)
    return x.astype(jnp.float32)


def to_bf16_values(x: Float32[Array, "..."]) -> Float32[Array, "..."]:
    """float32 rounded to bf16's values, staying float32; a pair of casts might be deleted."""
    return lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)


def rotated_length(length: int, quantizer: Quantizer) -> int:
    """An axis' length once padded to a multiple of max(rht, block), as a rotation needs."""
    _, block = quantizer.block or (1, 1)
    multiple = max(quantizer.rht, block)
    return -(-length // multiple) * multiple if quantizer.rht else length


def rotated(x, quantizer: Quantizer, axis: int, signs) -> Float32[Array, "..."]:
    """The RHT of `x` along `axis`, padded; rounded to bf16 if `x` was bf16.

    It is stored, in the dtype of `x`: maximum and rounding both read it, and fused into both it
    would be computed twice. Behind the barrier a cast is a cast.
    """
    padded = blocks.pad_to(exact_float32(x), _rotated_shape(x.shape, quantizer, axis))
    y = hadamard.rotate(padded, signs, axis)
    y = y.astype(jnp.bfloat16) if x.dtype == jnp.bfloat16 else y
    return lax.optimization_barrier(y).astype(jnp.float32)


def _rotated_shape(shape, quantizer, axis):
    axis %= len(shape)
    return tuple(
        rotated_length(size, quantizer) if i == axis else size for i, size in enumerate(shape)
    )


def random_for(x, quantizer: Quantizer, axis: int, key) -> UInt[Array, "..."] | None:
    """Random bits by place in the tensor as passed (as rotated, where that pads it)."""
    if quantizer.rounding == "nearest":
        return None
    shape = _rotated_shape(x.shape, quantizer, axis)
    return philox.random_bits(key, shape, quantizer.bits)


def _scales(split, quantizer, inner, amax):
    """(block scale, tensor scale, multiplier); a scale the format lacks is None."""
    bits = scales.magnitude_bits(split)
    axes = inner if quantizer.block else None  # all, and so one scale where there is no element
    block_amax = jnp.max(bits, axis=axes, keepdims=True, initial=0)
    element, rule = quantizer.element, quantizer.scale
    if quantizer.format == "nvfp4":
        amax = jnp.max(block_amax, initial=0) if amax is None else amax
        scale, multiplier = scales.nvfp4_scales(block_amax, amax)
        return scale, scales.nvfp4_tensor_scale(amax), multiplier
    if rule == "amax":
        scale, multiplier = scales.float32_scales(block_amax, element)
    else:
        scale, multiplier = scales.power_of_two_scales(block_amax, element, rule)
    if quantizer.block is None:
        return None, scale.reshape(()), multiplier
    return scale, None, multiplier


def _stored_scale(rounded, quantizer):
    if rounded.block_scale is None:
        return None
    shape = blocks.scale_shape(rounded.shape, rounded.lengths)
    scale = rounded.block_scale.reshape(shape)
    if quantizer.spec.scale_kind == "e8m0":
        return scales.encode_e8m0(scale)
    return scale.astype(jnp.float8_e4m3fn) if quantizer.format == "nvfp4" else scale


def _float32_scale(scale):
    is_e8m0 = scale.dtype == jnp.float8_e8m0fnu
    return scales.decode_e8m0(scale) if is_e8m0 else scale.astype(jnp.float32)

"""The Triton launches in plain JAX, so that their splitting over devices can run on CPUs.

Same arguments, same results: a shard's own elements, the maximum given from outside, random bits
by the shard's place in the whole. What the kernels themselves compute is tests/kernels' matter.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax

from nvfp4_jax import Quantizer, packing, philox, rounding
from nvfp4_jax.formats import E2M1
from nvfp4_jax.kernels import blocks, scales, xla
from nvfp4_jax.kernels.launch import Copy


def amax_bits(x, wanted, signs, round_to_bf16, compute_capability):
    seen = [_seen(x, copy, signs, round_to_bf16) for copy in wanted]
    return jnp.stack([jnp.max(scales.magnitude_bits(values)) for values in seen])


def relu_squared(u, dr, copies, signs, compute_capability):
    wide = jnp.maximum(u.astype(jnp.float32), 0)
    wide = wide * wide if dr is None else 2 * wide * dr.astype(jnp.float32)
    result = xla.to_bf16_values(wide).astype(jnp.bfloat16)
    return result, amax_bits(result, copies, signs, False, compute_capability)


def operands(x, copies, amax, signs, keys, offset, rows, round_to_bf16, compute_capability):
    results = []
    for copy, bits, key in zip(copies, amax, keys, strict=True):
        values, scale, lengths, shape = _rounded(
            x, copy, bits, signs, key, offset, round_to_bf16, rows
        )
        results.append(blocks.join((values * scale).astype(jnp.bfloat16), lengths, shape))
    return tuple(results)


def packed(x, copy, amax, signs, keys, offset, rows, round_to_bf16, compute_capability):
    values, scale, lengths, _ = _rounded(
        x, copy, amax[0], signs, keys[0], offset, round_to_bf16, rows
    )
    whole = blocks.padded_shape(x.shape, lengths)
    codes = blocks.join(values, lengths, whole).astype(E2M1.dtype)
    codes = jnp.moveaxis(packing.pack(jnp.moveaxis(codes, _axis(copy), -1)), -1, _axis(copy))
    count = blocks.scale_shape(x.shape, lengths)
    return codes, scale.reshape(count).astype(jnp.float8_e4m3fn)


def unpacked(codes, scale, shape, copy, compute_capability):
    values = jnp.moveaxis(packing.unpack(jnp.moveaxis(codes, _axis(copy), -1)), -1, _axis(copy))
    lengths = blocks.block_lengths(_quantizer(copy), shape, _axis(copy))
    split = blocks.split(values.astype(jnp.float32), lengths)
    wide = split * blocks.expand_scale(scale.astype(jnp.float32), lengths)
    return blocks.join(wide.astype(jnp.bfloat16), lengths, shape)


def native_operands(
    x, copies, amax, signs, keys, offset, rows, round_to_bf16, compute_capability, length_multiple
) -> list:
    """`blackwell_quantize.native_operands`, by way of `packed`."""
    pairs = []
    for i, copy in enumerate(copies):
        one = slice(i, i + 1)
        codes, scale = packed(
            x, copy, amax[one], signs, keys[one], offset, rows, round_to_bf16, compute_capability
        )
        codes, scale = codes[0], scale[0]
        if copy.axis == "rows":  # a byte holds two rows of the contraction
            codes, scale = codes.T, scale.T
        free = x.shape[2 if copy.axis == "rows" else 1]
        pairs.append(_tiled(codes[:free], scale, free, length_multiple))
    return pairs


def _tiled(codes, scale, rows, multiple):
    scale = jnp.repeat(scale, 16, axis=0)[:rows] if scale.shape[0] != rows else scale
    padded = -(-2 * codes.shape[1] // multiple) * multiple
    codes = jnp.pad(codes, [(0, 0), (0, padded // 2 - codes.shape[1])])
    scale = jnp.pad(scale, [(0, -rows % 128), (0, padded // 16 - scale.shape[1])])
    tiles = scale.reshape(-(-rows // 128), 4, 32, padded // 64, 4)
    return codes, tiles.transpose(0, 3, 2, 1, 4)


def block_scaled_matmul(a, a_scale, b, b_scale, sizes, scalars, dtype):
    """`blackwell_gemm.block_scaled_matmul`, of dequantized operands in FP32."""
    m, n, length = sizes
    assert (a.shape, b.shape) == ((m, length // 2), (n, length // 2))
    a, b = _dequantized(a, a_scale), _dequantized(b, b_scale)
    y = jnp.matmul(a, b.T, precision=lax.Precision.HIGHEST)
    for scalar in scalars:
        y = y * scalar
    return y.astype(dtype)


def _dequantized(codes, tiles):
    rows = codes.shape[0]
    down, across = tiles.shape[:2]
    assert (down, 64 * across) == (-(-rows // 128), 2 * codes.shape[1])
    scale = tiles.transpose(0, 3, 2, 1, 4).reshape(128 * down, 4 * across)[:rows]
    values = packing.unpack(codes).astype(jnp.float32)
    return values * jnp.repeat(scale.astype(jnp.float32), 16, axis=1)


def _axis(copy: Copy) -> int:
    return 1 if copy.axis == "rows" else 2


def _quantizer(copy: Copy) -> Quantizer:
    return Quantizer(
        granularity="16x16" if copy.square else "1x16",
        rounding="stochastic" if copy.bits else "nearest",
        bits=copy.bits or 8,
        rht=16 if copy.rht else 0,
    )


def _seen(x, copy, signs, round_to_bf16):
    x = x.astype(jnp.bfloat16) if round_to_bf16 else x
    if copy.rht:
        return xla.rotated(x, _quantizer(copy), _axis(copy), signs)
    return xla.exact_float32(x)


def _rounded(x, copy, amax, signs, key, offset, round_to_bf16, rows):
    values = _seen(x, copy, signs, round_to_bf16)
    lengths = blocks.block_lengths(_quantizer(copy), values.shape, _axis(copy))
    split = blocks.split(values, lengths)
    inner = blocks.inner_axes(lengths)
    block_amax = jnp.max(scales.magnitude_bits(split), axis=inner, keepdims=True)
    scale, multiplier = scales.nvfp4_scales(block_amax, amax)
    y = jnp.clip(split * multiplier, -6, 6)
    if not copy.bits:
        return rounding.round_nearest(y, E2M1), scale, lengths, values.shape
    random = blocks.split(_random(values.shape, copy, key, offset, rows), lengths)
    return rounding.round_stochastic(y, random, E2M1), scale, lengths, values.shape


def _random(shape, copy, key, offset, pitch):
    batch, rows, columns = shape
    if copy.rht and copy.axis == "rows":
        pitch = -(-pitch // 16) * 16
    calls = -(-columns // (128 // copy.bits))
    grid = (batch, rows, calls)
    entry, row, call = (
        jnp.arange(size, dtype=jnp.uint32).reshape([-1 if i == axis else 1 for i in range(3)])
        for axis, size in enumerate(grid)
    )
    place = (entry + offset[0]) * jnp.uint32(pitch) + row + offset[1]
    call = call + offset[2] // jnp.uint32(128 // copy.bits)
    zero = jnp.zeros(grid, jnp.uint32)
    counter = (zero + call, zero + place, zero, zero)
    words = philox.philox4x32((key[0], key[1]), counter)
    width = {8: jnp.uint8, 16: jnp.uint16, 32: jnp.uint32}[copy.bits]
    small = jnp.stack(words, axis=-1)
    return lax.bitcast_convert_type(small, width).reshape(batch, rows, -1)[..., :columns]

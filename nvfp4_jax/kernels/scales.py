"""From the largest magnitude of a block to its scale, one function a kind of scale.

Each returns `(scale, multiplier)` in float32: the scale multiplies on dequantize, and the
multiplier is what an element is multiplied with before it is rounded. The multiplier comes from
the *rounded* scale, so that both sides agree on what the block's unit is.

`amax` arrives as the bits of a non-negative float32: as integers, NaN > Inf > every number, so an
integer maximum cannot lose a NaN, which a float maximum on a CPU does.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float32, Int32

from nvfp4_jax.division import FLOAT32_MAX, divide
from nvfp4_jax.formats import E4M3, Element
from nvfp4_jax.rounding import round_nearest

_INFINITY = 0x7F800000
NVFP4_RANGE = 2688.0  # 6 * 448: the largest E2M1 times the largest E4M3

Scales = tuple[Float32[Array, "..."], Float32[Array, "..."]]


def magnitude_bits(x: Float32[Array, "..."]) -> Int32[Array, "..."]:
    """The bits of |x|, which order as the magnitudes do."""
    return lax.bitcast_convert_type(x, jnp.int32) & jnp.int32(0x7FFFFFFF)


def is_finite(amax_bits: Int32[Array, "..."]) -> Array:
    """Whether neither NaN nor infinity was among the magnitudes."""
    return amax_bits < jnp.int32(_INFINITY)


def nvfp4_scales(block_amax: Int32[Array, "..."], amax: Int32[Array, ""]) -> Scales:
    """E4M3 block scales under one FP32 scale a tensor (arXiv 2509.25149, appendix B).

        S = min(2688 / amax, FLT_MAX), 1 where that is 0
        s = E4M3(min(block_amax * (S * (1/6)), 448))
        e = min(1 / (s * (1 / S)), FLT_MAX)

    Exempt where XLA's CPU backend flushes subnormal numbers: 0 < amax < 3e-35, since 1 / S is
    subnormal, and blocks of maxima below 8e-38, since s / S is.
    """
    encode = jnp.minimum(divide(jnp.float32(NVFP4_RANGE), _float(amax)), FLOAT32_MAX)
    encode = jnp.where(encode == 0, jnp.float32(1), encode)
    decode = divide(jnp.float32(1), encode)
    wanted = _float(block_amax) * (encode * jnp.float32(1 / 6))
    scale = round_nearest(jnp.minimum(wanted, jnp.float32(E4M3.max)), E4M3)
    return scale, jnp.minimum(divide(jnp.float32(1), scale * decode), FLOAT32_MAX)


def nvfp4_tensor_scale(amax: Int32[Array, ""]) -> Float32[Array, ""]:
    """amax / 2688, as a product since XLA may turn a division by a constant into one anyway."""
    scale = _float(amax) * jnp.float32(1 / NVFP4_RANGE)
    return jnp.where(is_finite(amax), scale, jnp.float32(jnp.nan))


def power_of_two_scales(block_amax: Int32[Array, "..."], element: Element, rule: str) -> Scales:
    """2^e: `up` and `power_of_two` take ceil(log2(amax / max)), `floor` floor(log2 amax) - emax.

    Exponents come from the bits: with amax = m * 2^k and max = M * 2^emax, both mantissas in
    [1, 2), ceil(log2(amax / max)) is k - emax, plus one if m > M.
    """
    exponent = (block_amax >> 23) - 127 - element.max_exponent
    if rule != "floor":
        above = (block_amax & 0x7FFFFF) > _mantissa_bits(element.max)
        exponent = exponent + above.astype(jnp.int32)
    if rule == "power_of_two":  # kept in FP32, where an all-zero block has scale 1
        exponent = jnp.clip(jnp.where(block_amax == 0, 0, exponent), -126, 126)
    else:  # kept as E8M0, 2^-127 to 2^127
        exponent = jnp.clip(exponent, -127, 127)
    scale, multiplier = power_of_two(exponent), power_of_two(-exponent)
    return jnp.where(is_finite(block_amax), scale, jnp.float32(jnp.nan)), multiplier


def float32_scales(block_amax: Int32[Array, "..."], element: Element) -> Scales:
    """amax / max in FP32, 1 for amax = 0; the multiplier is min(max / amax, FLT_MAX)."""
    amax = _float(block_amax)
    scale = jnp.where(block_amax == 0, jnp.float32(1), amax * jnp.float32(1 / element.max))
    scale = jnp.where(is_finite(block_amax), scale, jnp.float32(jnp.nan))
    return scale, jnp.minimum(divide(jnp.float32(element.max), amax), FLOAT32_MAX)


def power_of_two(exponent: Int32[Array, "..."]) -> Float32[Array, "..."]:
    """2^exponent for -127..127 from its bits (`exp2` of an integer is not exact in XLA)."""
    bits = jnp.where(exponent > -127, (exponent + 127) << 23, jnp.int32(1 << 22))
    return lax.bitcast_convert_type(bits, jnp.float32)


def encode_e8m0(scale: Float32[Array, "..."]) -> Array:
    """A power of two (or NaN) as float8_e8m0fnu: its exponent field, 255 for NaN."""
    exponent = magnitude_bits(scale) >> 23
    return lax.bitcast_convert_type(exponent.astype(jnp.uint8), jnp.float8_e8m0fnu)


def decode_e8m0(scale: Array) -> Float32[Array, "..."]:
    """The float32 value of float8_e8m0fnu; 255 is NaN."""
    code = lax.bitcast_convert_type(scale, jnp.uint8).astype(jnp.int32)
    return jnp.where(code == 255, jnp.float32(jnp.nan), power_of_two(code - 127))


def _float(bits):
    return lax.bitcast_convert_type(bits, jnp.float32)


def _mantissa_bits(value):
    return int(np.float32(value).view(np.int32)) & 0x7FFFFF

"""Rounding to a small float format, by arithmetic in float32.

Why not a cast? XLA may delete a pair of casts float32 -> float8 -> float32 under jit (on GPUs it
does, by default), and a quantizer without its rounding still trains, only in another precision
than it claims. Arithmetic is not deleted. The idea: near a value `a`, the format's numbers are
the multiples of a gap, a power of two that its bits tell.

    nearest     (a + C) - C         C = 1.5 * 2^23 * gap: the sum has no bits below the gap, so
                                    the addition itself rounds, ties to even
    stochastic  floor(a / gap + u) * gap      u uniform in [0, 1)

Random numbers are an argument, so both are pure functions.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float32, UInt

from nvfp4_jax.formats import Element

_SIGN = 0x80000000


def gap(magnitude: Float32[Array, "..."], element: Element) -> Float32[Array, "..."]:
    """The distance between neighbouring values of the format in the binade of `magnitude`."""
    exponent = lax.bitcast_convert_type(magnitude, jnp.uint32) >> 23
    exponent = jnp.maximum(exponent, jnp.uint32(127 + element.min_exponent))
    return lax.bitcast_convert_type(
        (exponent - jnp.uint32(element.mantissa_bits)) << 23, jnp.float32
    )


def round_nearest(x: Float32[Array, "..."], element: Element) -> Float32[Array, "..."]:
    """`x`, already within ±element.max, to the nearest value of the format, ties to even.

    The result is float32, exactly representable in `element.dtype`.
    """
    magnitude, sign = _split_sign(x)
    magic = gap(magnitude, element) * jnp.float32(1.5 * 2**23)
    return _join_sign((magnitude + magic) - magic, sign)


def round_stochastic(
    x: Float32[Array, "..."], random: UInt[Array, "..."], element: Element
) -> Float32[Array, "..."]:
    """`x` to a neighbour in the format, up with probability floor(2^b f) / 2^b.

    f is the fraction of the gap above the lower neighbour, b the bits of `random` (uint8, uint16,
    or uint32, of which the top 24 are used since a float32 u of 32 bits could round to 1).
    Magnitudes never pass element.max.

    Source: arXiv 2509.25149 appendix C; eight bits are what Blackwell's `cvt.rs` uses.
    """
    magnitude, sign = _split_sign(x)
    step = gap(magnitude, element)
    up = jnp.floor(magnitude * _reciprocal(step) + _uniform(random)) * step
    return _join_sign(jnp.minimum(up, jnp.float32(element.max)), sign)


def _uniform(random):
    width = random.dtype.itemsize * 8
    if width == 32:
        return (random >> 8).astype(jnp.float32) * jnp.float32(2.0**-24)
    return random.astype(jnp.float32) * jnp.float32(2.0**-width)


def _reciprocal(power_of_two):
    """1 / 2^k by negating the exponent: 254 - (k + 127) is -k + 127."""
    bits = lax.bitcast_convert_type(power_of_two, jnp.uint32)
    return lax.bitcast_convert_type(jnp.uint32(254 << 23) - bits, jnp.float32)


def _split_sign(x):
    bits = lax.bitcast_convert_type(x, jnp.uint32)
    magnitude = lax.bitcast_convert_type(bits & jnp.uint32(_SIGN - 1), jnp.float32)
    return magnitude, bits & jnp.uint32(_SIGN)


def _join_sign(magnitude, sign):
    bits = lax.bitcast_convert_type(magnitude, jnp.uint32) | sign
    return lax.bitcast_convert_type(bits, jnp.float32)

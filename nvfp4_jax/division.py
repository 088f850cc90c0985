"""Division that rounds as IEEE 754 says, on every backend.

Scales are quotients, and one wrong last bit in a scale changes thousands of codes. On a CPU a
quotient in float64 rounds to the right float32. XLA's GPU backend turns `x / y` into `div.full` and
`1 / x` into `rcp.approx`, which may be off by two units in the last place (ulp), and many GPUs have
next to no float64; there, and wherever else, the quotient is corrected.

The correction is exact and needs no wide arithmetic. Write `x`, `y` and the approximate quotient
`q` with 24-bit integer mantissas. Then `x - q y` in units of the last place is

    r = mx * 2^k - mq * my,        k = 23 or 24

Each product needs 48 bits, but `q` is close, so `|r|` is at most a few times `my < 2^24` and the
difference taken modulo 2^32 is the true one. If `2 r > my` the neighbour above is nearer, if
`2 r < -my` the one below, or if `4 r < -my` where `q` is a power of two, since floats lie twice as
close below it. A quotient of two floats is never halfway between two floats, so there are no
ties. One pass repairs one ulp; two passes repair what GPUs do.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float32

FLOAT32_MAX = float(jnp.finfo(jnp.float32).max)


def divide(x: Float32[Array, "..."], y: Float32[Array, "..."]) -> Float32[Array, "..."]:
    """x / y for non-negative float32, rounded to nearest even on CPU and GPU alike.

    Operands and quotients outside the normal range (zero, subnormal, infinite, NaN) come back as
    the backend's own division gives them. There is no gradient, as of all that rounds.

    Source: numerics of arXiv 2509.25149 appendix B, which assumes IEEE division.
    """
    x, y = jnp.broadcast_arrays(jnp.float32(x), jnp.float32(y))
    x, y = lax.stop_gradient((x, y))  # which one of the branches alone would have
    return lax.platform_dependent(x, y, cpu=_in_float64, default=_corrected)


def _corrected(x: Array, y: Array) -> Array:
    return correct_quotient(correct_quotient(x / y, x, y), x, y)


def _in_float64(x: Array, y: Array) -> Array:
    """x * (1 / y), off by 2^-52 of it at most, so that it rounds as x / y does.

    A quotient of floats is 2^-49 of it or more from what lies halfway between two floats. XLA may
    make this product of a division, too, in float32 as well: where all of y are one number.
    """
    with jax.enable_x64(True):
        x, y = (lax.convert_element_type(a, jnp.float64) for a in (x, y))
        return lax.convert_element_type(x * lax.integer_pow(y, -1), jnp.float32)


def correct_quotient(
    q: Float32[Array, "..."], x: Float32[Array, "..."], y: Float32[Array, "..."]
) -> Float32[Array, "..."]:
    """The float nearest to x / y among `q` and its two neighbours."""
    q_bits, x_bits, y_bits = (lax.bitcast_convert_type(a, jnp.uint32) for a in (q, x, y))
    shift = _exponent(x_bits) - _exponent(q_bits) - _exponent(y_bits) + jnp.int32(127 + 23)
    shift = jnp.clip(shift, 0, 31).astype(jnp.uint32)
    divisor = _mantissa(y_bits)
    wrapped = (_mantissa(x_bits) << shift) - _mantissa(q_bits) * divisor
    residual = 2 * lax.bitcast_convert_type(wrapped, jnp.int32)
    divisor = divisor.astype(jnp.int32)
    below = jnp.where((q_bits & jnp.uint32(0x7FFFFF)) == 0, 2 * residual, residual)
    step = (residual > divisor).astype(jnp.int32) - (below < -divisor).astype(jnp.int32)
    nearest = lax.bitcast_convert_type(q_bits + step.astype(jnp.uint32), jnp.float32)
    return jnp.where(_normal(q_bits) & _normal(x_bits) & _normal(y_bits), nearest, q)


def _exponent(bits):
    return (bits >> 23).astype(jnp.int32)


def _mantissa(bits):
    return (bits & jnp.uint32(0x7FFFFF)) | jnp.uint32(0x800000)


def _normal(bits):
    return (bits >= jnp.uint32(0x00800000)) & (bits < jnp.uint32(0x7F800000))

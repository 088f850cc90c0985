"""Rounding to E2M1 and E4M3 in Triton: the arithmetic of `nvfp4_jax.rounding`, fewer instructions.

Both formats are arithmetic in float32 here as there. Let p be the power of two below a magnitude
(or the format's smallest normal), from its exponent bits; the gap is p / 2 in E2M1, p / 8 in E4M3.

    nearest     (a + C) - C                   C = 2^23 * gap, ties to even
    stochastic  ((a + u gap) + C) - C         the second sum rounded down: a floor

The definition writes floor(a / gap + u) * gap. Multiplying by a power of two is exact, so
a + u gap rounds where a / gap + u does; and a sum with C, rounded down, is a floor to multiples of
gap. A floor as such, and every conversion between integers and floats, runs at a quarter of the
rate of an addition. So u comes as the float whose bits are its 24: the subnormal u 2^-125 (or, of
its upper half, the normal: they continue each other). Products with those run at full rate, and
u gap = (u 2^-125) (2^124 p).

What lies above 6 is cut off after rounding, which gives what clipping before gives: rounding never
decreases with its argument, and at 6 no random number leads anywhere else but, with 24 bits, to 8.
"""

from __future__ import annotations

import triton
import triton.language as tl

from nvfp4_jax.kernels.triton_assembly import add_and_floor


@triton.jit
def _magic(a, SMALLEST: tl.constexpr, MANTISSA: tl.constexpr):
    """C of `a` >= 0: 2^(23 - MANTISSA) times the power of two at or below, at least 2^SMALLEST.

    The product is a sum of exponents: Hopper adds integers and takes their maximum in one
    instruction. A sum beyond float32 has the sign bit, and the smallest C, which leaves so large
    an `a` as it is.
    """
    exponent = (a.to(tl.int32, bitcast=True) & 0x7F800000) + ((23 - MANTISSA) << 23)
    return tl.maximum(exponent, (127 + SMALLEST + 23 - MANTISSA) << 23).to(tl.float32, bitcast=True)


@triton.jit
def nearest_e2m1(a):
    """`a` >= 0 to the nearest of 0, .5, 1, 1.5, 2, 3, 4, 6; what is beyond 6 stays beyond it."""
    magic = _magic(a, 0, 1)
    return (a + magic) - magic


@triton.jit
def nearest_e4m3(a):
    """`a` in [0, 448] to the nearest E4M3 value, subnormals included; ties to even."""
    magic = _magic(a, -6, 3)
    return (a + magic) - magic


@triton.jit
def stochastic_e2m1(a, random):
    """`a` >= 0 to one of its neighbours in E2M1; what is beyond 6 stays beyond it, or is a NaN.

    `random` is u 2^-125 with u uniform in [0, 1): of 24 bits at most.

    From 16 on 2^124 p is no float32: it is infinite, which ends in a NaN, or has the sign bit,
    for which the smallest stands in, and leaves so large an `a` large.
    """
    unit = (a.to(tl.int32, bitcast=True) & 0x7F800000) + (124 << 23)
    unit = tl.maximum(unit, (127 + 124) << 23).to(tl.float32, bitcast=True)
    return add_and_floor(a, random, unit)


@triton.jit
def with_sign_of(a, x):
    """`a` >= 0 with the sign of `x`, zero included."""
    bits = a.to(tl.int32, bitcast=True) | (x.to(tl.int32, bitcast=True) & -2147483648)
    return bits.to(tl.float32, bitcast=True)

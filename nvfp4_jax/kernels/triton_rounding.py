"""Rounding to E2M1 and E4M3 in Triton: the arithmetic of `nvfp4_jax.rounding`, fewer instructions.

Both formats are arithmetic in float32 here as there. Let p be the power of two below a magnitude
(or the format's smallest normal), from its exponent bits; the gap is p / 2 in E2M1, p / 8 in E4M3.

    nearest     (a + C) - C                   C = 2^23 * gap, ties to even
    stochastic  ((a + r q) + C) - C           q = gap / 2^bits, r the random integer,
                                              the second sum rounded down: a floor

The definition writes floor(a / gap + u) * gap. Multiplying by a power of two is exact, so
a + r q rounds where a / gap + u does; and a sum with C, rounded down, is a floor to multiples of
gap. A floor as such, and every conversion between integers and floats, runs at a quarter of the
rate of an addition, so r becomes a float by its bits: 0x4B000000 | r is 2^23 + r.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _binade(a, SMALLEST: tl.constexpr):
    """The power of two at or below `a` >= 0, at least SMALLEST (the bits of one)."""
    exponent = a.to(tl.int32, bitcast=True) & 0x7F800000
    return tl.maximum(exponent, SMALLEST).to(tl.float32, bitcast=True)


@triton.jit
def nearest_e2m1(a):
    """`a` in [0, 6] to the nearest of 0, .5, 1, 1.5, 2, 3, 4, 6; ties to the even code."""
    magic = _binade(a, 0x3F800000) * 4194304.0  # 2^22
    return (a + magic) - magic


@triton.jit
def nearest_e4m3(a):
    """`a` in [0, 448] to the nearest E4M3 value, subnormals included; ties to even."""
    magic = _binade(a, 121 << 23) * 1048576.0  # 2^20; the smallest normal is 2^-6
    return (a + magic) - magic


@triton.jit
def stochastic_e2m1(a, random, BITS: tl.constexpr):
    """`a` in [0, 6] to one of its neighbours in E2M1, by BITS random bits an element."""
    p = _binade(a, 0x3F800000)
    if BITS == 32:  # of 32 bits the top 24 are used
        r = (random >> 8).to(tl.int32).to(tl.float32)
        total = tl.fma(r, p * (2.0**-25), a)
    else:
        r = (random | 0x4B000000).to(tl.float32, bitcast=True) - 8388608.0
        total = tl.fma(r, p * (2.0 ** -(BITS + 1)), a)
    magic = p * 4194304.0
    lower = _add_down(total, magic) - magic
    # Only 24 bits come so near to 1 that 6 + 2 u may round to 8.
    return tl.minimum(lower, 6.0) if BITS == 32 else lower


@triton.jit
def _add_down(a, b):
    """a + b rounded toward minus infinity."""
    return tl.inline_asm_elementwise(
        "add.rm.f32 $0, $1, $2;", "=f,f,f", [a, b], dtype=tl.float32, is_pure=True, pack=1
    )


@triton.jit
def magnitude(x):
    """|x|."""
    return (x.to(tl.int32, bitcast=True) & 0x7FFFFFFF).to(tl.float32, bitcast=True)


@triton.jit
def with_sign_of(a, x):
    """`a` >= 0 with the sign of `x`, zero included."""
    bits = a.to(tl.int32, bitcast=True) | (x.to(tl.int32, bitcast=True) & -2147483648)
    return bits.to(tl.float32, bitcast=True)

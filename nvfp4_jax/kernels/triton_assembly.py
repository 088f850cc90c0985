"""Single GPU instructions that Triton has no name for, all of sm_80 and later.

Where two bf16 share a register one instruction does the work of two; where a byte must become a
float, one permutation replaces a shift, a mask and a conversion. Each is a function of its
arguments alone, element by element, and the tests' interpreter knows them by their text.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def add_and_floor(a, random, unit):
    """a + random unit, to nearest, and then down to a multiple of 2^-125 unit; all float32.

    A sum with 2^-102 unit, whose last place is worth 2^-125 unit, rounded down, is that floor.
    """
    return tl.inline_asm_elementwise(
        """
        {
            .reg .f32 sum;
            fma.rn.f32 sum, $2, $3, $1;
            fma.rm.f32 sum, $3, 0f0C800000, sum;
            fma.rn.f32 $0, $3, 0f8C800000, sum;
        }
        """,
        "=f,f,f,f",
        [a, random, unit],
        dtype=tl.float32,
        is_pure=True,
        pack=1,
    )


@triton.jit
def magnitude_times(x, factor):
    """float32 |x| factor: one instruction, where a compiler that sees |.| masks bits first."""
    return tl.inline_asm_elementwise(
        "{ .reg .f32 a; abs.f32 a, $1; mul.rn.f32 $0, a, $2; }",
        "=f,f,f",
        [x, factor],
        dtype=tl.float32,
        is_pure=True,
        pack=1,
    )


@triton.jit
def reciprocal(a):
    """float32 1 / a, rounded to nearest even, of any a."""
    return tl.inline_asm_elementwise(
        "rcp.rn.f32 $0, $1;", "=f,f", [a], dtype=tl.float32, is_pure=True, pack=1
    )


@triton.jit
def normal_reciprocal(a):
    """float32 1 / a, rounded to nearest even, for 2^-126 <= a < 2^126; NaN for 0.

    An approximation and one step of Newton's: what a GPU does for `rcp.rn` where no number is
    subnormal, without asking for each whether one is.
    """
    return tl.inline_asm_elementwise(
        """
        {
            .reg .f32 guess, negative, error;
            rcp.approx.ftz.f32 guess, $1;
            neg.f32 negative, $1;
            fma.rn.f32 error, guess, negative, 0f3F800000;
            fma.rn.f32 $0, guess, error, guess;
        }
        """,
        "=f,f",
        [a],
        dtype=tl.float32,
        is_pure=True,
        pack=1,
    )


@triton.jit
def permute_bytes(a, b, selector):
    """Each byte of a 32-bit result is one of the eight of (a, b), named by a nibble."""
    return tl.inline_asm_elementwise(
        "prmt.b32 $0, $1, $2, $3;",
        "=r,r,r,r",
        [a, b, selector],
        dtype=tl.uint32,
        is_pure=True,
        pack=1,
    )


@triton.jit
def pair(low, high):
    """Two float32 as bf16 in one word, to nearest even."""
    return tl.inline_asm_elementwise(
        "cvt.rn.bf16x2.f32 $0, $2, $1;",
        "=r,f,f",
        [low, high],
        dtype=tl.uint32,
        is_pure=True,
        pack=1,
    )


@triton.jit
def magnitude_pair(a):
    """The magnitudes of two bf16 in one word; not by the integers' instruction, the busier ones."""
    return tl.inline_asm_elementwise(
        "abs.bf16x2 $0, $1;", "=r,r", [a], dtype=tl.uint32, is_pure=True, pack=1
    )


@triton.jit
def larger_pair(a, b):
    """The larger of two bf16, twice in one word; of a NaN and a number the number."""
    return tl.inline_asm_elementwise(
        "max.bf16x2 $0, $1, $2;", "=r,r,r", [a, b], dtype=tl.uint32, is_pure=True, pack=1
    )


@triton.jit
def signed_products(low, high, signs, scales):
    """Two of min(a, 6) with a sign, times a scale, as bf16 in one word: exact in bf16.

    `signs` and `scales` are pairs of bf16. A NaN among a counts as 6. The product is a sum with
    -0.0, for sm_80 has no other, and it keeps the sign of zero.
    """
    return tl.inline_asm_elementwise(
        """
        {
            .reg .b32 v, s, six, zero;
            mov.b32 six, 0x40c040c0;
            mov.b32 zero, 0x80008000;
            cvt.rn.bf16x2.f32 v, $2, $1;
            min.bf16x2 v, v, six;
            and.b32 s, $3, 0x80008000;
            or.b32 v, v, s;
            fma.rn.bf16x2 $0, v, $4, zero;
        }
        """,
        "=r,f,f,r,r",
        [low, high, signs, scales],
        dtype=tl.uint32,
        is_pure=True,
        pack=1,
    )

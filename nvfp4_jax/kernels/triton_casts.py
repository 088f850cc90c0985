"""Blackwell's conversions to 4 and 8 bits, one instruction for what elsewhere is arithmetic.

| instruction                   | of                          | compute capability   |
|-------------------------------|-----------------------------|----------------------|
| cvt.rn.satfinite.e2m1x2.f32   | two floats, to nearest even | 10.0, 10.3 and later |
| cvt.rs.satfinite.e2m1x4.f32   | four floats and 32 bits     | 10.0 and 10.3 alone  |
| cvt.rn.satfinite.e4m3x2.f32   | two floats, to nearest even | 8.9 and later        |

All three saturate, which clips what the definition clips. `cvt.rs` adds eight random bits to the
bits of the mantissa that are cut off and keeps the carry. That is floor(a / gap + r / 256) of the
exact sum; the definition rounds the sum to float32 first, and so the two may differ where it lies
within 2^-22 below a whole number: in one of 1.6e8 elements drawn at random.

Which random byte belongs to which element was never checked on hardware, for none was at hand.
The PTX ISA (9.1, `cvt`) says of `d, {a, b, e, f}, rbits`: a is stored in the upper bits of d,
and "lower 8-bits from both 16-bits half of `rbits` are used for operands e, f and upper 8-bits
from both 16-bits half of `rbits` are used for operands a, b". We read the halves in the order of
the operands:

    a: bits 31-24     b: bits 15-8     e: bits 23-16     f: bits 7-0

Should the hardware have another order, elements of the same four would swap their random bytes:
every one would still be rounded with a fresh byte, and only the bits, not the distribution, would
differ from the definition's.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def nearest_quad(v0, v1, v2, v3):
    """Four float32 as E2M1 codes in the lower half of a word, `v0` lowest."""
    return tl.inline_asm_elementwise(
        """
        {
            .reg .b8 low, high, zero;
            .reg .b16 none;
            mov.b16 none, 0;
            cvt.rn.satfinite.e2m1x2.f32 low, $2, $1;
            cvt.rn.satfinite.e2m1x2.f32 high, $4, $3;
            cvt.u8.u16 zero, none;
            mov.b32 $0, {low, high, zero, zero};
        }
        """,
        "=r,f,f,f,f",
        [v0, v1, v2, v3],
        dtype=tl.uint32,
        is_pure=True,
        pack=1,
    )


@triton.jit
def stochastic_quad(v0, v1, v2, v3, random):
    """The same rounded stochastically: byte i of `random` is for element i."""
    return tl.inline_asm_elementwise(
        """
        {
            .reg .b32 bits;
            .reg .b16 codes;
            prmt.b32 bits, $5, 0, 0x3120;
            cvt.rs.satfinite.e2m1x4.f32 codes, {$4, $3, $2, $1}, bits;
            cvt.u32.u16 $0, codes;
        }
        """,
        "=r,f,f,f,f,r",
        [v0, v1, v2, v3, random],
        dtype=tl.uint32,
        is_pure=True,
        pack=1,
    )


@triton.jit
def nearest_e4m3_byte(a):
    """A float32 of at most 448 as an E4M3 byte in a word."""
    return tl.inline_asm_elementwise(
        """
        {
            .reg .b16 byte;
            cvt.rn.satfinite.e4m3x2.f32 byte, 0f00000000, $1;
            cvt.u32.u16 $0, byte;
        }
        """,
        "=r,f",
        [a],
        dtype=tl.uint32,
        is_pure=True,
        pack=1,
    )

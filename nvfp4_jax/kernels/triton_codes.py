"""Codes of E2M1 and E4M3 as integers, from and to float32 values of the format.

A small format is float32 with fewer bits, once its smallest normal number is float32's, 2^-126:
then exponents agree, subnormal numbers are subnormal, and the code is the upper bits.

    code(v) = bits(v * 2^-126) >> 22 for E2M1, bits(v * 2^-120) >> 20 for E4M3     (v >= 0)

Both products are exact, and a GPU computes with subnormal numbers at full speed.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def encode_e2m1(value):
    """The four bits of a float32 that is an E2M1 value, sign of zero included; as uint32."""
    bits = (value * 2.0**-126).to(tl.uint32, bitcast=True)
    return ((bits >> 22) & 7) | ((bits >> 28) & 8)


@triton.jit
def decode_e2m1(code):
    """The float32 value of four bits."""
    bits = ((code & 7) << 22) | ((code & 8) << 28)
    return bits.to(tl.float32, bitcast=True) * 2.0**126


@triton.jit
def encode_e4m3(value):
    """The byte of a non-negative float32 that is an E4M3 value."""
    return ((value * 2.0**-120).to(tl.int32, bitcast=True) >> 20).to(tl.uint8)


@triton.jit
def decode_e4m3(code):
    """The float32 value of a byte without a sign."""
    return (code.to(tl.int32) << 20).to(tl.float32, bitcast=True) * 2.0**120

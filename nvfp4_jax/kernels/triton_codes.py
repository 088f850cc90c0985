"""Codes of E2M1 and E4M3 as integers, from and to float32 values of the format.

An E2M1 code is sign (bit 3), exponent (bits 2, 1) and mantissa (bit 0); from 1 upward its lower
three bits are the upper bits of the float32, counted from 252. E4M3 likewise, from 2^-6 upward;
below, both count their smallest numbers, 0.5 and 2^-9.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def encode_e2m1(value):
    """The four bits of a float32 that is an E2M1 value, sign of zero included; as int32."""
    bits = value.to(tl.int32, bitcast=True)
    magnitude = bits & 0x7FFFFFFF
    low = tl.maximum((magnitude >> 22) - 252, (magnitude != 0).to(tl.int32))
    return low | ((bits >> 28) & 8)


@triton.jit
def decode_e2m1(code):
    """The float32 value of four bits."""
    low = code & 7
    bits = tl.where(low < 2, low * 0x3F000000, (low + 252) << 22)
    return (bits | ((code & 8) << 28)).to(tl.float32, bitcast=True)


@triton.jit
def encode_e4m3(value):
    """The byte of a non-negative float32 that is an E4M3 value."""
    normal = (value.to(tl.int32, bitcast=True) >> 20) - 960  # 120 exponents of 8 mantissas
    subnormal = (value * 512.0 + 8388608.0).to(tl.int32, bitcast=True)
    return tl.where(value < 0.015625, subnormal, normal).to(tl.uint8)


@triton.jit
def decode_e4m3(code):
    """The float32 value of a byte without a sign."""
    code = code.to(tl.int32)
    normal = ((code + 960) << 20).to(tl.float32, bitcast=True)
    subnormal = (code | 0x4B000000).to(tl.float32, bitcast=True) - 8388608.0
    return tl.where(code < 8, subnormal * 0.001953125, normal)

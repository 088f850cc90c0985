"""Scales: from the largest magnitude of a block to what its elements are multiplied by.

Every function returns (stored scale, multiplier): dequantized = code * scale, code =
round(x * multiplier).
"""

from __future__ import annotations

from fractions import Fraction

import ml_dtypes
import numpy as np

from .formats import E4M3, E8M0

F32 = np.float32
BF16 = np.dtype(ml_dtypes.bfloat16)
FLT_MAX = np.finfo(np.float32).max


def nvfp4(block_amax: np.ndarray, amax: np.float32) -> tuple[np.ndarray, np.ndarray]:
    """E4M3 scales of the blocks, under the FP32 scale of the tensor."""
    with np.errstate(divide="ignore", over="ignore", invalid="ignore", under="ignore"):
        s_enc = np.minimum(F32(2688) / amax, FLT_MAX)
        if s_enc == 0:
            s_enc = F32(1)
        s_dec = F32(1) / s_enc
        multiplier = s_enc * F32(1 / 6)
        s = np.minimum(block_amax * multiplier, FLT_MAX)
        s = np.clip(s, F32(-448), F32(448)).astype(E4M3)
        e = np.minimum(F32(1) / (s.astype(np.float32) * s_dec), FLT_MAX)
    return s, e


def nvfp4_tensor_scale(amax: np.float32) -> np.float32:
    return amax * F32(1 / 2688)


def exponent_up(amax: np.float32, largest: float) -> int:
    """ceil(log2(amax / largest)): the smallest e with largest * 2^e >= amax, by exact fractions."""
    ratio = Fraction(float(amax)) / Fraction(largest)
    e = int(np.frexp(float(ratio))[1]) - 2
    while Fraction(2) ** e < ratio:
        e += 1
    return e


def exponent_floor(amax: np.float32, largest_exponent: int) -> int:
    """floor(log2(amax)) - the exponent of the largest element (OCP MX 1.0, section 6.3)."""
    return int(np.frexp(amax)[1]) - 1 - largest_exponent


def power_of_two(amax: np.ndarray, exponent_of) -> tuple[np.ndarray, np.ndarray]:
    """(2^e, 2^-e) as float32 with e of each entry in -127..127; for amax 0 the lowest e."""
    exponents = np.full(amax.shape, -127, np.int32)
    for index in np.ndindex(amax.shape):
        if np.isfinite(amax[index]) and amax[index] > 0:
            exponents[index] = min(max(exponent_of(amax[index]), -127), 127)
    return np.ldexp(F32(1), exponents), np.ldexp(F32(1), -exponents)


def e8m0(amax: np.ndarray, exponent_of) -> tuple[np.ndarray, np.ndarray]:
    """Eight bits of exponent; NaN (0xFF) for a block that holds a NaN or an infinity."""
    scale, multiplier = power_of_two(amax, exponent_of)
    scale = np.where(np.isfinite(amax), scale, F32(np.nan)).astype(E8M0)
    return scale, multiplier


def fp32(amax: np.ndarray, largest: float) -> tuple[np.ndarray, np.ndarray]:
    """FP32 scales, as fp8 has them for a block or a tensor."""
    with np.errstate(divide="ignore", over="ignore", invalid="ignore", under="ignore"):
        scale = np.where(amax == 0, F32(1), amax * F32(1 / largest))
        scale = np.where(np.isfinite(amax), scale, F32(np.nan))
        return scale, np.minimum(F32(largest) / amax, FLT_MAX)


def fp32_power_of_two(amax: np.ndarray, largest: float) -> tuple[np.ndarray, np.ndarray]:
    scale, multiplier = power_of_two(amax, lambda a: exponent_up(a, largest))
    scale = np.where(amax == 0, F32(1), scale)
    return np.where(np.isfinite(amax), scale, F32(np.nan)), multiplier


def bfloat16(x: np.ndarray) -> np.ndarray:
    """Round to bfloat16 and come back to float32."""
    return x.astype(BF16).astype(np.float32)

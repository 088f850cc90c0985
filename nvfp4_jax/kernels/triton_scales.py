"""NVFP4 scales in Triton: `nvfp4_jax.kernels.scales.nvfp4_scales` with IEEE division.

The three factors of a tensor are computed by every program anew: two divisions each, beside
thousands of elements, and no launch of their own.
"""

from __future__ import annotations

import triton
import triton.language as tl

from nvfp4_jax.kernels.triton_assembly import normal_reciprocal, reciprocal
from nvfp4_jax.kernels.triton_rounding import nearest_e4m3

FLOAT32_MAX = tl.constexpr(3.4028234663852886e38)


@triton.jit
def tensor_factors(amax_bits):
    """(S / 6, 1 / S) with S = min(2688 / amax, FLT_MAX), 1 where that is 0."""
    amax = amax_bits.to(tl.float32, bitcast=True)
    encode = tl.minimum(tl.div_rn(2688.0, amax), FLOAT32_MAX)
    encode = tl.where(encode == 0.0, 1.0, encode)
    return encode * (1.0 / 6.0), reciprocal(encode)


@triton.jit
def block_scales(block_amax, multiplier, decode):
    """The E4M3 scale of each block, as float32, and what its elements are multiplied with."""
    scale = nearest_e4m3(tl.minimum(block_amax * multiplier, 448.0))
    return scale, multipliers(scale, decode)


@triton.jit
def multipliers(scale, decode):
    """What the elements of a block are multiplied with, from its rounded scale."""
    return tl.minimum(_reciprocals(scale * decode, decode), FLOAT32_MAX)


@triton.jit
def _reciprocals(unit, decode):
    """1 / unit, rounded to nearest even; NaN, or infinity, for 0.

    Scales are 2^-9 and more, so whether a subnormal number may occur is a matter of the tensor:
    one question a program instead of one a block.
    """
    quotient = normal_reciprocal(unit)
    if decode < 2.0**-117:
        quotient = reciprocal(unit)
    return quotient

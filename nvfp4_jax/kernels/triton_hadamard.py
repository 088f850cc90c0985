"""The random Hadamard transform of length 16 in Triton: `nvfp4_jax.hadamard.rotate`, in registers.

Signs, butterflies over distances 1, 2, 4, 8, then a factor 1/4. The sixteen values of a group
are the last axis of a tensor and lie in one thread. Each stage splits that axis into even and odd
places and puts the pairs' sums in front of their differences: the lowest bit of a place becomes
its highest, so four equal stages do distances 1, 2, 4, 8 and end in the order they began with.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def rotate16(x, signs, N: tl.constexpr):
    """(N, 16) float32, every row times diag(signs) H / 4."""
    x = x * signs[None, :]
    for _ in tl.static_range(4):
        even, odd = tl.split(x.reshape(N, 8, 2))
        x = tl.join(even + odd, even - odd).permute(0, 2, 1).reshape(N, 16)
    return x * 0.25

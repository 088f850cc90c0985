"""The random Hadamard transform of length 16 in Triton: `nvfp4_jax.hadamard.rotate`, in registers.

Signs, then butterflies over distances 1, 2, 4, 8; the factor 1/4 is the caller's. The sixteen
values of a group are the last axis of a tensor and lie in one thread. Each stage splits that axis
into even and odd places and puts the pairs' sums in front of their differences: the lowest bit of
a place becomes its highest, so four equal stages do distances 1, 2, 4, 8 and end in the order
they began with.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def butterflies16(x, signs, N: tl.constexpr):
    """(N, 16) float32, every row times diag(signs) H; `signs` may hold a power of two as well.

    The products are exact, so the first stage may fuse them with its sums.
    """
    even, odd = tl.split(x.reshape(N, 8, 2))
    even_sign, odd_sign = tl.split(signs.reshape(8, 2))
    even = even * even_sign[None, :]
    odd_sign = tl.broadcast_to(odd_sign[None, :], (N, 8))
    x = _in_front(tl.fma(odd, odd_sign, even), tl.fma(odd, -odd_sign, even), N)
    for _ in tl.static_range(3):
        even, odd = tl.split(x.reshape(N, 8, 2))
        x = _in_front(even + odd, even - odd, N)
    return x


@triton.jit
def _in_front(sums, differences, N: tl.constexpr):
    return tl.join(sums, differences).permute(0, 2, 1).reshape(N, 16)

"""`implementation="blackwell"`: 4-bit codes, multiplied by Blackwell's 4-bit tensor cores.

Where the emulation writes values in bf16, here a quantizing kernel writes what the hardware reads:
two codes a byte and E4M3 scales in the order of its 128x4 tiles (`blackwell_layout`), contracted
along the last axis. So an operand is 4.5 bits an element in memory and on the wire. What contracts
tokens, or the weight's other axis, is transposed by the kernel that quantizes it.

The codes are those of the definition. A product's sums are FP32 in the tensor core's own order,
multiplied with the tensor scales one after the other and rounded once.

Compiled for sm_100a and sm_103a and never executed: no such GPU was at hand.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from nvfp4_jax.kernels import fused, mapped, native, native_partitioned, scales, views
from nvfp4_jax.kernels.capability import capability
from nvfp4_jax.kernels.request import Native, Operand, Request
from nvfp4_jax.kernels.tiles import Copy
from nvfp4_jax.kernels.xla import rotated_length

ONE_READ = True  # whether two copies asked for together cost less than two
emulated = native.emulated


def to_native(
    x: Float[Array, "rows columns"], requests: Sequence[Request], dtype: DTypeLike | None = None
) -> tuple[Operand, ...]:
    """`x` rounded to `dtype`, then as codes and scales contracted along each request's axis.

    Up to two copies are made from one read of `x`.
    """
    if len(requests) > 1 and not fused.share_a_read(x, requests):
        return tuple(operand for r in requests for operand in to_native(x, [r], dtype))
    seen, round_to_bf16 = views.as_seen(x, dtype)
    view, signs, keys = seen[None], views.signs_of(requests), views.keys_of(requests)
    copies = tuple(views.copy_of(r, x.ndim) for r in requests)
    static = (copies, round_to_bf16, views.target())
    amax = fused.amax_of(requests, view, signs, *static)
    parts = iter(_coded(*static)(view, amax, signs, keys))  # codes and scales in turn
    return tuple(
        Operand(Native(next(parts), next(parts), *_sizes(x, r)), scales.nvfp4_tensor_scale(bits))
        for bits, r in zip(amax, requests, strict=True)
    )


def native_product(
    a: Native, b: Native, tensor_scales: tuple[Array, ...], dtype: DTypeLike
) -> Float[Array, "m n"]:
    """((a bᵀ) s_0) s_1 with FP32 sums, rounded once to `dtype`: bfloat16 or float32."""
    sizes = (a.rows, b.rows)
    call = _product(sizes, len(tensor_scales), jnp.dtype(dtype), capability())
    vectors = (scale.reshape(1) for scale in tensor_scales)
    return call(a.codes, a.block_scale, b.codes, b.block_scale, *vectors)


@cache
def _coded(copies: tuple[Copy, ...], round_to_bf16: bool, target: int):
    return mapped.one_at_a_time(native_partitioned.operands(copies, round_to_bf16, target))


@cache
def _product(sizes: tuple[int, int], count: int, dtype, found):
    return mapped.one_at_a_time(native_partitioned.product(sizes, count, dtype, found))


def _sizes(x: Array, request: Request) -> tuple[int, int]:
    """(rows, contracted length) of an operand."""
    axis = request.axis % 2
    return x.shape[1 - axis], rotated_length(x.shape[axis], request.quantizer)

"""`implementation="cudnn"`: products by `jax.nn.scaled_matmul`.

On Blackwell XLA hands that to cuDNN, which multiplies 4-bit codes; on other GPUs and on CPUs XLA
expands it to a product of dequantized operands, exact and slower. It takes one code an element and
scales in plain order, and no FP32 scale, so tensor scales cost a pass over the product. Quantizing
is done by the best implementation at hand.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from nvfp4_jax.kernels import native, xla
from nvfp4_jax.kernels.available import quantizing
from nvfp4_jax.kernels.blocks import pad_to
from nvfp4_jax.kernels.request import Native, Operand, Request
from nvfp4_jax.kernels.tiles import BLOCK

ONE_READ = False  # whether two copies asked for together cost less than two
emulated = native.emulated
_UNIT = 64  # contracted elements, so that rows begin at 32 bytes and their scales at whole words


def to_native(
    x: Float[Array, "rows columns"], requests: Sequence[Request], dtype: DTypeLike | None = None
) -> tuple[Operand, ...]:
    """`x` rounded to `dtype`, then as codes and scales contracted along each request's axis.

    Codes are (rows, length) and scales (rows, length / 16), the length padded to `_UNIT`.
    """
    return tuple(_coded(x, request, dtype) for request in requests)


def _coded(x: Array, request: Request, dtype: DTypeLike | None) -> Operand:
    kept = quantizing().to_packed(x, request, dtype)
    codes = jnp.moveaxis(xla.codes_of(kept), kept.axis, -1)
    scale = jnp.moveaxis(kept.block_scale, kept.axis, -1)
    rows, length = codes.shape
    if request.quantizer.block == (BLOCK, BLOCK):
        scale = jnp.repeat(scale, BLOCK, axis=0)[:rows]
    padded = -(-length // _UNIT) * _UNIT
    codes, scale = pad_to(codes, (rows, padded)), pad_to(scale, (rows, padded // BLOCK))
    return Operand(Native(codes, scale, rows, length), kept.tensor_scale)


def native_product(
    a: Native, b: Native, scales: tuple[Array, ...], dtype: DTypeLike
) -> Float[Array, "m n"]:
    """((a bᵀ) s_0) s_1 with FP32 sums, rounded once to `dtype`."""
    y = jax.nn.scaled_matmul(
        a.codes[None],
        b.codes[None],
        a.block_scale[None],
        b.block_scale[None],
        preferred_element_type=jnp.float32,
    )[0]
    for scale in scales:
        y = y * scale
    return y.astype(dtype)

"""Which products run on 4-bit codes, where the hardware has them.

A product does if both its operands are NVFP4 in a layout that 4-bit tensor cores take: scales of
1x16 (square tiles repeat theirs), both rotated alike or not at all. One bf16 operand, another
format or a batch axis, and the product is emulated as on any other GPU.
"""

from __future__ import annotations

from nvfp4_jax.kernels.tiles import BLOCK
from nvfp4_jax.quantizer import Quantizer


def emulated(first: Quantizer | None, second: Quantizer | None) -> str | None:
    """Why a product of operands so quantized (None: bf16) is emulated; None if it is not."""
    for quantizer in (first, second):
        if quantizer is None:
            return "one operand is bf16, and 4-bit tensor cores take two of 4 bits"
        if reason := unsupported(quantizer):
            return reason
    return None


def unsupported(quantizer: Quantizer) -> str | None:
    """Why a quantizer's codes are none for a 4-bit product, or None if they are."""
    if quantizer.format != "nvfp4":
        return f"the 4-bit product is for nvfp4, not {quantizer.format}"
    if quantizer.rht not in (0, BLOCK):
        return f"the kernels rotate {BLOCK} elements, not {quantizer.rht}"
    return None

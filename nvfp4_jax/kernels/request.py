"""What is asked of a quantizing kernel: one or more copies of a tensor, from one read of it.

A linear layer wants two of its input (along features for Fprop, along tokens for Wgrad) and two of
its gradient. Asked for together they cost one pass over memory; asked for one by one, two.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
from jaxtyping import Array, Float32, Int32

from nvfp4_jax.quantizer import Quantizer


class Request(NamedTuple):
    """One quantized copy: how, along which axis, and with what randomness."""

    quantizer: Quantizer
    axis: int
    key: Array | None = None  # for stochastic rounding
    signs: Float32[Array, "n"] | None = None  # of the rotation
    amax: Int32[Array, ""] | None = None  # bits of the largest magnitude, where it is known


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Native:
    """A quantized matrix as 4-bit tensor cores read it: contracted along the last axis.

    Attributes:
      codes: in the implementation's own layout.
      block_scale: float8_e4m3fn, likewise.
      rows: of the matrix, the axis that is not contracted.
      length: of the contraction, as long as a rotation left it and without the layout's padding.
    """

    codes: Any
    block_scale: Any
    rows: int = field(metadata={"static": True})
    length: int = field(metadata={"static": True})


class Operand(NamedTuple):
    """A GEMM operand, bf16 or native, and the FP32 scale its product is to be multiplied with."""

    array: Array | Native
    scale: Float32[Array, ""] | None = None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Packed:
    """A quantized copy at its stored size, to be kept from the forward pass to the backward pass.

    Attributes:
      codes: uint8, two 4-bit codes a byte along the axis (the even element in the low nibble), the
        axis padded to whole blocks; 8-bit elements as they are.
      block_scale: as in `BlockScaledArray`.
      tensor_scale: FP32 scalar; None where the format has none.
      quantizer: what made it.
      axis: the axis of the blocks, counted from the end.
      length: of that axis in the operand.
    """

    codes: Any  # an array, or what stands for one where only shapes are traced
    block_scale: Any
    tensor_scale: Any
    quantizer: Quantizer = field(metadata={"static": True})
    axis: int = field(metadata={"static": True})
    length: int = field(metadata={"static": True})

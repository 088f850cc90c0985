"""`BlockScaledArray`: codes, the scales of their blocks, and the scale of the whole tensor."""

from __future__ import annotations

from dataclasses import dataclass, field

import jax
from jaxtyping import Array

from nvfp4_jax.quantizer import Quantizer


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class BlockScaledArray:
    """A quantized tensor; a pytree, so it passes through jit, vmap, scan and checkpoints.

    The value of an element is `data * block_scale * tensor_scale`, multiplied in this order.

    Attributes:
      data: the codes as an ml_dtypes array (float4_e2m1fn, float8_e4m3fn, float8_e5m2), of the
        tensor's shape; with an RHT its axis is padded to a multiple of max(rht, block).
      block_scale: one entry a block, `ceil(size / block)` along each blocked axis, in
        float8_e4m3fn, float8_e8m0fnu or float32. A square block (16x16, 128x128) of a tensor
        with other than two axes has the scales of the (rows, axis) matrix it was flattened to.
        None for granularity `tensor`.
      tensor_scale: float32 scalar; None where the format has none.
      quantizer: what made it.
      axis: the contraction axis the blocks lie along, counted from the end.
    """

    data: Array
    block_scale: Array | None
    tensor_scale: Array | None
    quantizer: Quantizer = field(metadata={"static": True})
    axis: int = field(metadata={"static": True})

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of `data`."""
        return self.data.shape

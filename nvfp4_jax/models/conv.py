"""The causal depthwise convolution in front of the scan.

    y[t, c] = bias[c] + sum over j of weight[j, c] * x[t - (width - 1) + j, c]

Each channel is filtered by itself, with taps on this token (j = width - 1) and the width - 1
before it; tokens before the start of the row, or of the document, count as zero.

Four shifted copies and three additions, which a compiler fuses into one pass over memory, beat
`lax.conv_general_dilated` with as many feature groups as channels, on a CPU by far.
"""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from nvfp4_jax.models.initialization import conv_uniform
from nvfp4_jax.models.product import accumulator


class CausalConv(nnx.Module):
    """Convolution along the tokens, then SiLU; computed in FP32, rounded once.

    The parameter is called `weight`: what is called `kernel` is a linear layer, and a recipe
    governs it.
    """

    def __init__(self, channels: int, width: int, *, param_dtype: DTypeLike, rngs: nnx.Rngs):
        self.weight = nnx.Param(conv_uniform(rngs.params(), (width, channels), width, param_dtype))
        self.bias = nnx.Param(conv_uniform(rngs.params(), (channels,), width, param_dtype))

    def __call__(self, x: Array, segment_ids: Array | None = None) -> Array:
        """x (batch, length, channels), segment_ids (batch, length); the result is as x."""
        wide = x.astype(accumulator(x.dtype))
        y = causal_conv(wide, self.weight[...].astype(wide.dtype), segment_ids)
        y += self.bias[...].astype(wide.dtype)[None, None]
        return nnx.silu(y).astype(x.dtype)


def causal_conv(x: Array, weight: Array, segment_ids: Array | None = None) -> Array:
    """The sum above without bias: x (batch, length, channels), weight (width, channels)."""
    width = weight.shape[0]
    total = x * weight[None, None, -1]
    for distance in range(1, width):
        past = _shift(x, distance)
        if segment_ids is not None:
            same = _shift(segment_ids, distance) == segment_ids
            past = jnp.where(same[..., None], past, 0)
        total += past * weight[None, None, -1 - distance]
    return total


def _shift(x: Array, distance: int) -> Array:
    """x[t - distance] at t, zero before the start."""
    distance = min(distance, x.shape[1])
    padding = [(0, 0), (distance, 0)] + [(0, 0)] * (x.ndim - 2)
    return jnp.pad(x[:, : x.shape[1] - distance], padding)

"""The causal depthwise convolution in front of the scan, and SiLU.

    y[t, c] = silu(bias[c] + sum over j of weight[j, c] * x[t - (width - 1) + j, c])

Each channel is filtered by itself, with taps on this token (j = width - 1) and the width - 1
before it; tokens before the start of the row, or of the document, count as zero.

In plain operations, four shifted copies and three additions, which a compiler fuses into one pass
over memory, beat `lax.conv_general_dilated` with as many feature groups as channels, on a CPU by
far. Backward a compiler makes many passes of it; on a GPU a kernel (`conv_triton`) does each
direction in one. Whichever runs, the backward pass keeps only x and computes the rest again.
"""

from __future__ import annotations

import functools
import itertools
from typing import cast

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from nvfp4_jax.models.initialization import conv_uniform
from nvfp4_jax.models.pieces import in_pieces
from nvfp4_jax.models.product import accumulator
from nvfp4_jax.models.target import Implementation, choose, rounded


class CausalConv(nnx.Module):
    """Convolution along the tokens, then SiLU; computed in FP32, rounded once.

    The parameter is called `weight`: what is called `kernel` is a linear layer, and a recipe
    governs it.
    """

    def __init__(self, channels: int, width: int, *, param_dtype: DTypeLike, rngs: nnx.Rngs):
        self.weight = nnx.Param(conv_uniform(rngs.params(), (width, channels), width, param_dtype))
        self.bias = nnx.Param(conv_uniform(rngs.params(), (channels,), width, param_dtype))

    def __call__(
        self, x: Array, segment_ids: Array | None = None, *, start: int, widths: tuple[int, ...]
    ) -> tuple[Array, ...]:
        """See `conv_silu`."""
        return conv_silu(
            x, self.weight[...], self.bias[...], segment_ids, start=start, widths=widths
        )

    def of_parts(
        self, parts: tuple[Array, ...], segment_ids: Array | None = None
    ) -> tuple[Array, ...]:
        """The same of channels that come as several arrays, each by itself."""
        ends = list(itertools.accumulate(part.shape[-1] for part in parts))[:-1]
        weights = jnp.split(self.weight[...], ends, axis=1)
        biases = jnp.split(self.bias[...], ends)

        def conv(x: Array, weight: Array, bias: Array, segment_ids: Array | None) -> Array:
            return conv_silu(x, weight, bias, segment_ids, widths=(x.shape[-1],))[0]

        return tuple(
            in_pieces(conv, (x, 2), (w, 1), (b, 0), (segment_ids, None), result=2)
            for x, w, b in zip(parts, weights, biases, strict=True)
        )


def conv_silu(
    x: Array,
    weight: Array,
    bias: Array,
    segment_ids: Array | None = None,
    *,
    start: int = 0,
    widths: tuple[int, ...],
    implementation: Implementation | None = None,
) -> tuple[Array, ...]:
    """silu(conv(x) + bias) of some columns of x, cut into parts.

    Args:
      x: (batch, length, features); columns start .. start + channels are convolved.
      weight: (taps, channels).
      bias: (channels,).
      segment_ids: (batch, length), the document of each token.
      start: the first column.
      widths: how the channels are cut; their sum is `channels`.
      implementation: `xla`, `triton`, or None for the faster one that can run.

    Returns:
      One array (batch, length, width) for each width, in the dtype of x.

    Raises:
      ValueError: widths or columns that do not fit; `triton` where it cannot run, saying why.
    """
    channels = weight.shape[1]
    if sum(widths) != channels or start + channels > x.shape[-1]:
        raise ValueError(
            f"widths {widths} from column {start} on do not cut {channels} channels out of x with "
            f"{x.shape[-1]} columns"
        )
    obstacle = functools.partial(_obstacle, x, weight, widths)
    chosen = choose(implementation, obstacle, "convolution")
    return cast(tuple[Array, ...], _conv_silu(x, weight, bias, segment_ids, start, widths, chosen))


def _obstacle(x: Array, weight: Array, widths: tuple[int, ...]) -> str | None:
    from nvfp4_jax.models import conv_triton

    return conv_triton.obstacle(x, weight, widths)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def _conv_silu(
    x: Array,
    weight: Array,
    bias: Array,
    segment_ids: Array | None,
    start: int,
    widths: tuple[int, ...],
    implementation: Implementation,
) -> tuple[Array, ...]:
    if implementation == "triton":
        from nvfp4_jax.models import conv_triton

        return conv_triton.forward(x, weight, bias, segment_ids, start, widths)
    return _definition(x[..., start : start + sum(widths)], weight, bias, segment_ids, widths)


def _definition(
    x: Array, weight: Array, bias: Array, segment_ids: Array | None, widths: tuple[int, ...]
) -> tuple[Array, ...]:
    wide = x.astype(accumulator(x.dtype))
    y = causal_conv(wide, weight.astype(wide.dtype), segment_ids)
    y += bias.astype(wide.dtype)[None, None]
    ends = list(itertools.accumulate(widths))[:-1]
    return tuple(jnp.split(nnx.silu(y).astype(x.dtype), ends, axis=-1))


def _forward(x, weight, bias, segment_ids, start, widths, implementation):
    y = _conv_silu(x, weight, bias, segment_ids, start, widths, implementation)
    return y, (x, weight, bias, segment_ids)


def _backward(start: int, widths: tuple[int, ...], implementation: Implementation, kept, dy):
    x, weight, bias, segment_ids = kept
    columns = slice(start, start + sum(widths))
    if implementation == "triton":
        from nvfp4_jax.models import conv_triton

        dx, dweight, dbias = conv_triton.backward(x, weight, bias, segment_ids, start, dy)
    else:
        _, pull = jax.vjp(
            lambda x, weight, bias: _definition(x, weight, bias, segment_ids, widths),
            x[..., columns],
            weight,
            bias,
        )
        dx, dweight, dbias = pull(tuple(dy))
    outside = (columns.start, x.shape[-1] - columns.stop)
    dx = jnp.pad(dx, [(0, 0), (0, 0), outside])
    return dx, dweight.astype(weight.dtype), dbias.astype(bias.dtype), None


_conv_silu.defvjp(_forward, _backward)


def causal_conv(x: Array, weight: Array, segment_ids: Array | None = None) -> Array:
    """The sum above, without bias and SiLU: x (batch, length, channels), weight as above."""
    width = weight.shape[0]
    total = rounded(rounded(x) * weight[None, None, -1])
    for distance in range(1, width):
        past = _shift(x, distance)
        if segment_ids is not None:
            same = _shift(segment_ids, distance) == segment_ids
            past = jnp.where(same[..., None], past, 0)
        total += rounded(rounded(past) * weight[None, None, -1 - distance])
    return total


def _shift(x: Array, distance: int) -> Array:
    """x[t - distance] at t, zero before the start."""
    distance = min(distance, x.shape[1])
    padding = [(0, 0), (distance, 0)] + [(0, 0)] * (x.ndim - 2)
    return jnp.pad(x[:, : x.shape[1] - distance], padding)

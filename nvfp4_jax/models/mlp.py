"""The MLP: widen, bend, narrow.

`relu_squared`:  down(relu(up(x))^2), what Nemotron-H uses. Its zeros are exact and frequent, which
is of interest to whoever quantizes the input of `down`.
`swiglu`:        down(silu(gate(x)) * up(x)).

The bend is computed in FP32 and rounded once.

`relu_squared` from x to the result is a plug, as the products in it are (`chain`): whoever trains
may assign a function that does the three as one.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from nvfp4_jax.models.config import HybridConfig
from nvfp4_jax.models.initialization import residual_sigma
from nvfp4_jax.models.linear import linear
from nvfp4_jax.models.pieces import in_pieces
from nvfp4_jax.models.placement import place
from nvfp4_jax.models.product import accumulator

Chain = Callable[[nnx.Linear, nnx.Linear, Array, Callable[[Array], Array]], Array]


class MLP(nnx.Module):
    """x (..., hidden) to (..., hidden) by way of `ffn` features; no biases."""

    def __init__(
        self, config: HybridConfig, *, dtype: DTypeLike, param_dtype: DTypeLike, rngs: nnx.Rngs
    ):
        common = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.kind = config.mlp
        self.up = linear(config.hidden, config.ffn, sigma=config.init_sigma, **common)
        if self.kind == "swiglu":
            self.gate = linear(config.hidden, config.ffn, sigma=config.init_sigma, **common)
        self.down = linear(config.ffn, config.hidden, sigma=residual_sigma(config), **common)
        self.chain: Chain = one_after_another

    def __call__(self, x: Array, segment_ids: Array | None = None) -> Array:
        """Tokens do not meet here, so `segment_ids` changes nothing."""
        if self.kind == "relu_squared":
            return self.chain(self.up, self.down, x, self._inside)
        gate, up = (self._inside(layer(x)) for layer in (self.gate, self.up))
        last = x.ndim - 1
        return self.down(in_pieces(_swiglu, (gate, last), (up, last), result=last))

    def _inside(self, wide: Array) -> Array:
        axes = ("batch", "length", "features")
        return place(wide, *axes) if wide.ndim == 3 else wide


def one_after_another(
    up: nnx.Linear, down: nnx.Linear, x: Array, inside: Callable[[Array], Array]
) -> Array:
    """down(relu(up(x))^2), with what is inside laid out by `inside`."""
    return down(relu_squared(inside(up(x))))


def _swiglu(gate: Array, up: Array) -> Array:
    """silu(gate) * up, computed in FP32 and rounded once."""
    wide = up.astype(accumulator(up.dtype))
    return (nnx.silu(gate.astype(wide.dtype)) * wide).astype(up.dtype)


@jax.custom_vjp
def relu_squared(x: Array) -> Array:
    """relu(x)^2, computed in FP32 and rounded once; the backward pass keeps x as it is."""
    return jnp.square(nnx.relu(x.astype(accumulator(x.dtype)))).astype(x.dtype)


def _forward(x: Array) -> tuple[Array, Array]:
    return relu_squared(x), x


def _backward(x: Array, dy: Array) -> tuple[Array]:
    wide = x.astype(accumulator(x.dtype))
    return ((2 * nnx.relu(wide) * dy.astype(wide.dtype)).astype(x.dtype),)


relu_squared.defvjp(_forward, _backward)

"""An MLP's two linears and the bend between them as one, where amaxes can be handed on.

See `nvfp4_jax.chained`. The model knows nothing of it: its MLP has a plug for the three, and this
puts something in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import nnx

from nvfp4_jax.chained import Bound, relu_squared_mlp
from nvfp4_jax.models.mlp import MLP, Chain, one_after_another


def bind_chains(block: nnx.Module, bound: Mapping[str, Bound]) -> None:
    """Let every MLP of a block hand amaxes on, where it can.

    Args:
      block: its linears have been bound already, each by itself.
      bound: how, by their paths inside the block.
    """
    for path, mlp in nnx.iter_graph(block):
        if isinstance(mlp, MLP):
            up, down = ("/".join(map(str, (*path, name))) for name in ("up", "down"))
            mlp.chain = _chain(bound[up], bound[down])


def _chain(up_bound: Bound, down_bound: Bound) -> Chain:
    def chain(
        up: nnx.Linear, down: nnx.Linear, x: jax.Array, inside: Callable[[jax.Array], jax.Array]
    ) -> jax.Array:
        promoted: Any = up.promote_dtype((x, up.kernel[...]), dtype=up.dtype)
        weights = promoted[1], down.kernel[...]
        y = relu_squared_mlp(promoted[0], *weights, up_bound, down_bound, inside)
        return one_after_another(up, down, x, inside) if y is None else y

    return chain

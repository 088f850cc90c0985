"""The door into Flax NNX: put a recipe into an existing model.

    model = nvfp4_jax.nnx.apply_recipe(model, recipe, rngs=nnx.Rngs(sr=0))

Every Linear, LinearGeneral (MultiHeadAttention is made of those) and Einsum gets the `dot_general`
or `einsum_op` its rule asks for. Randomness is state of the model: each layer has a stream of its
own, seeded with the layer's path, which `nnx.jit` and `nnx.split` carry along. Parameters are
untouched: a checkpoint fits with and without a recipe.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx
from flax.nnx.nn import dtypes

from nvfp4_jax.dot_general import make_dot_general
from nvfp4_jax.einsum import make_einsum
from nvfp4_jax.keys import layer_key
from nvfp4_jax.precision import LinearPrecision
from nvfp4_jax.promotion import keep_weight as keep_weight
from nvfp4_jax.recipe import Recipe, layer_path
from nvfp4_jax.recipe.blocks import count_blocks

LINEARS = (nnx.Linear, nnx.LinearGeneral, nnx.Einsum)
STREAMS = ("sr", "sr_rng")


class RecipeOperation(nnx.Module):
    """A `dot_general` or `einsum` in one precision, with a random stream of its own."""

    def __init__(
        self,
        make: Callable[..., Callable],
        precision: LinearPrecision,
        key: jax.Array | None,
        implementation: str | None,
        name: str | None = None,
    ):
        self.make = make
        self.precision = precision
        self.implementation = implementation
        self.name = name
        self.stream = None if key is None else nnx.RngStream(key, tag="sr")

    def __call__(self, *args: Any, **kwargs: Any) -> jax.Array:
        key = None if self.stream is None else self.stream()
        made = self.make(self.precision, key, self.implementation, name=self.name)
        return made(*args, **kwargs)


def apply_recipe(
    model: Any,
    recipe: Recipe,
    rngs: nnx.Rngs | None = None,
    num_blocks: int | None = None,
    implementation: str | None = None,
) -> Any:
    """Give every linear layer of `model` its precision; changes `model` and returns it.

    Layers that cast to bf16 with Flax's own `promote_dtype` get `keep_weight`, so that weights
    enter the product in FP32 and their gradients come back in FP32.

    Args:
      model: any `nnx.Module`. Applying another recipe later replaces the first.
      recipe: from `nvfp4_jax.load_recipe`.
      rngs: must hold a stream `sr` if a precision draws random numbers.
      num_blocks: blocks of the model; counted from the paths (`blocks/7/...`) if left out.
      implementation: `None` for the best available, or a name.

    Raises:
      ValueError: the model has no linear layer, a layer no rule covers, a rule that matches
        nothing, a missing stream, or a recipe with a schedule. The model is then unchanged.
    """
    recipe.require_no_schedule()
    layers = linear_modules(model)
    if not layers:
        raise ValueError(f"{type(model).__name__} has no Linear, LinearGeneral or Einsum layer")
    paths = list(layers)
    num_blocks = count_blocks(paths) if num_blocks is None else num_blocks
    recipe.check(paths, num_blocks)
    precisions = {path: recipe.resolve(path, num_blocks).precision for path in paths}
    base = _base_key(precisions, rngs)
    for path, layer in layers.items():
        _equip(layer, path, precisions[path], base, implementation)
    return model


def linear_modules(model: Any) -> dict[str, Any]:
    """The layers a recipe governs, by path (`blocks_7/mlp/up`)."""
    return {
        layer_path(map(str, path)): node
        for path, node in nnx.iter_graph(model)
        if isinstance(node, LINEARS)
    }


def _equip(layer, path, precision, base, implementation):
    key = layer_key(base, path) if precision.needs_key else None
    is_einsum = isinstance(layer, nnx.Einsum)
    make = make_einsum if is_einsum else make_dot_general
    operation = nnx.data(RecipeOperation(make, precision, key, implementation, path))
    if is_einsum:
        layer.einsum_op = operation
    else:
        layer.dot_general = operation
    if layer.promote_dtype is dtypes.promote_dtype:
        layer.promote_dtype = keep_weight


def _base_key(precisions, rngs):
    needing = [path for path, precision in precisions.items() if precision.needs_key]
    if not needing:
        return None
    for stream in STREAMS:
        if rngs is not None and stream in rngs:
            return rngs[stream]()
    raise ValueError(
        f"{len(needing)} layers ({needing[0]!r} first) draw random numbers; pass "
        "rngs=nnx.Rngs(sr=seed)"
    )

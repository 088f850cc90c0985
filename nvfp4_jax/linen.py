"""The door into Flax linen: a `dot_general_cls` that looks up its layer in a recipe.

    nn.Dense(512, dot_general_cls=linen.dot_general_cls(recipe, num_blocks=12), name="up")

Flax instantiates the class inside the layer, so the module sees the layer's path, asks the recipe
for its precision, and draws its randomness from the stream `sr`:

    model.apply(variables, x, rngs={"sr": key})         # a new key each step

Parameters are untouched: a checkpoint fits with and without a recipe.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
from jax import lax

from nvfp4_jax import promotion
from nvfp4_jax.dot_general import make_dot_general
from nvfp4_jax.keys import layer_key
from nvfp4_jax.recipe import Recipe

STREAMS = ("sr", "sr_rng")


def keep_weight(*args: Any, dtype: Any = None, inexact: bool = True) -> Any:
    """`promote_dtype=` for linen's Dense and DenseGeneral: see `promotion.keep_weight`."""
    return promotion.keep_weight(args, dtype=dtype, inexact=inexact)


class RecipeDotGeneral(nn.Module):
    """`lax.dot_general` in the precision a recipe gives the layer this module lives in."""

    recipe: Recipe
    num_blocks: int | None = None
    implementation: str | None = None

    @nn.compact
    def __call__(
        self,
        lhs: jax.Array,
        rhs: jax.Array,
        dimension_numbers: Any,
        precision: Any = None,
        preferred_element_type: Any = None,
        *,
        out_sharding: Any = None,
    ) -> jax.Array:
        if self.is_initializing():  # only shapes matter, and no `sr` stream is owed yet
            rhs = rhs.astype(lhs.dtype)
            return lax.dot_general(lhs, rhs, dimension_numbers, precision, preferred_element_type)
        path = "/".join(self.path[:-1])
        linear_precision = self.recipe.resolve(path, self.num_blocks).precision
        key = self._key(path) if linear_precision.needs_key else None
        dot_general = make_dot_general(linear_precision, key, self.implementation, name=path)
        return dot_general(
            lhs,
            rhs,
            dimension_numbers,
            precision,
            preferred_element_type,
            out_sharding=out_sharding,
        )

    def _key(self, path: str) -> jax.Array:
        for stream in STREAMS:
            if self.has_rng(stream):  # make_rng alone would fall back to "params"
                return layer_key(self.make_rng(stream), path)
        raise ValueError(
            f"layer {path!r} draws random numbers and no stream 'sr' was given; call "
            "model.apply(variables, ..., rngs={'sr': key}) with a new key each step, or use "
            "recipe.for_evaluation()"
        )


def dot_general_cls(
    recipe: Recipe, num_blocks: int | None = None, implementation: str | None = None
) -> Callable[[], RecipeDotGeneral]:
    """A `dot_general_cls` (or `qkv_dot_general_cls`, `out_dot_general_cls`) for linen layers.

    Args:
      recipe: from `nvfp4_jax.load_recipe`.
      num_blocks: blocks of the model, which rules by `last` or `last_fraction` need.
      implementation: `None` for the best available, or a name.

    Raises:
      ValueError: a recipe with a schedule; when the layer is applied, no `sr` stream where random
        numbers are drawn, or a layer that no rule covers.
    """
    recipe.require_no_schedule()
    return partial(
        RecipeDotGeneral, recipe=recipe, num_blocks=num_blocks, implementation=implementation
    )

"""Precision meets model: every linear layer gets its `dot_general` just before its block runs.

The recipe is resolved once, before anything is traced, into a *table*: layer path -> precision.
The table is hashable and static; it is all of the recipe that a compiled step depends on, so two
moments of a schedule with equal tables share one executable.

A layer's key is folded from step, microbatch and the hash of its path (see `nvfp4_jax.keys`).
Inside a scan over repeats one traced block stands for several, and their hashes are gathered with
the traced number of the repeat: the bits are those of the unrolled model.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding

from nvfp4_jax.chained import Bound
from nvfp4_jax.dot_general import make_dot_general
from nvfp4_jax.keys import layer_hash
from nvfp4_jax.operands import amax_bits
from nvfp4_jax.precision import LinearPrecision
from nvfp4_jax.quantizer import Quantizer
from nvfp4_jax.recipe import Recipe, linear_layers
from nvfp4_jax.residuals import weight_packs
from nvfp4_jax.scopes import joined
from nvfp4_jax.together import FeatureParts
from nvfp4_jax.training.chains import bind_chains

_BLOCK = re.compile(r"/(\d+)/")  # a block's number, which a recipe's paths write blocks_3
Table = tuple[tuple[str, LinearPrecision], ...]
Amaxes = dict[str, jax.Array]
Gathered = Callable[[str, tuple[int, ...]], NamedSharding | None]
Features = Callable[[str], FeatureParts | None]
Bind = Callable[[Any, tuple[int, ...], jax.Array | None], None]


def precision_table(recipe: Recipe, model: nnx.Module, num_blocks: int) -> Table:
    """(layer path, precision) of every linear layer of the model, sorted by path.

    Raises:
      RecipeError: a layer no rule covers, or a rule that matches nothing.
    """
    paths = sorted(linear_layers(model))
    recipe.check(paths, num_blocks=num_blocks)
    return tuple((path, recipe.resolve(path, num_blocks=num_blocks).precision) for path in paths)


def block_labels(table: Table, blocks: tuple[str, ...]) -> tuple[tuple, ...]:
    """One hashable label a block, letters and precisions; equal labels may share a scan."""
    labels: list[tuple] = [(letters,) for letters in blocks]
    for path, precision in table:
        block, _, inside = path.partition("/")
        if block.startswith("blocks_"):
            labels[int(block.removeprefix("blocks_"))] += ((inside, precision),)
    return tuple(labels)


def weight_amaxes(table: Table, model: nnx.Module) -> Amaxes:
    """path -> amax of every weight that is quantized under it; found once for many microbatches."""
    precisions = dict(table)
    named = [(_BLOCK.sub(r"_\1/", name), linear) for name, linear in linears(model)]
    return {
        path: amax_bits(
            linear.kernel[...], jnp.promote_types(linear.dtype or jnp.float32, jnp.bfloat16)
        )
        for path, linear in named
        if _has_plain_weight(precisions[path])
    }


def _has_plain_weight(precision: LinearPrecision) -> bool:
    weights = precision.fprop.weight, precision.dgrad.weight
    return any(isinstance(w, Quantizer) and w.format == "nvfp4" and not w.rht for w in weights)


def packs_a_weight(table: Table, model: nnx.Module, gathered: Gathered) -> bool:
    """Whether some block's weight, which `gathered` says to travel, can do so as 4-bit codes."""
    precisions = dict(table)
    return any(
        gathered(f"{name}/kernel", linear.kernel.shape) is not None
        and weight_packs(precisions[_BLOCK.sub(r"_\1/", name)])
        for name, linear in linears(model)
        if name.startswith("blocks/")
    )


def make_bind(
    table: Table,
    key: jax.Array,
    amaxes: Amaxes | None = None,
    gathered: Gathered | None = None,
    together: Features | None = None,
) -> Bind:
    """The callback that `models.apply_blocks` calls with each block about to run.

    Args:
      table: the precision of every layer.
      key: the microbatch's key (`keys.microbatch_key`), possibly traced.
      amaxes: of the weights, from `weight_amaxes`; left out, each product finds its own.
      gathered: how a weight (its parameter's path, its shape) is to lie when it is multiplied, if
        it is to travel packed; see `make_dot_general`.
      together: given where what `jax.vmap` maps over is one batch: how the features of a weight
        (its parameter's path) are cut in parts; likewise.
    """
    precisions = dict(table)

    def bind(block: Any, indices: tuple[int, ...], repeat: jax.Array | None) -> None:
        bound: dict[str, Bound] = {}
        for name, linear in linears(block):
            paths = [f"blocks_{i}/{name}" for i in indices]
            amax = _gathered(amaxes or {}, paths, repeat)
            folded = _fold(key, paths, repeat)
            path = f"blocks/{indices[0]}/{name}/kernel"
            layout = gathered(path, linear.kernel.shape) if gathered else None
            precision = precisions[paths[0]]
            features = together and together(path)
            bind_linear(
                linear,
                precision,
                folded,
                amax,
                joined(paths),
                layout,
                together is not None,
                features,
            )
            own = folded if precision.needs_key else None
            bound[name] = Bound(precision, own, amax, joined(paths), layout)
        if not together:
            bind_chains(block, bound)

    return bind


def bind_linear(
    linear: nnx.Linear,
    precision: LinearPrecision,
    key: jax.Array,
    amax: jax.Array | None = None,
    name: str | None = None,
    gathered: NamedSharding | None = None,
    together: bool = False,
    feature_parts: FeatureParts | None = None,
) -> None:
    """Let `linear` multiply in `precision`, drawing from `key` if it draws at all.

    `name` is what the compiled program calls it; see `scopes`.
    """
    own = key if precision.needs_key else None
    linear.dot_general = make_dot_general(
        precision,
        key=own,
        weight_amax=amax,
        name=name,
        gathered=gathered,
        together=together,
        feature_parts=feature_parts,
    )


def linears(module: Any) -> list[tuple[str, nnx.Linear]]:
    """The linear layers below a module with their paths inside it."""
    nodes = nnx.iter_graph(module)
    return [("/".join(map(str, path)), n) for path, n in nodes if isinstance(n, nnx.Linear)]


def _gathered(amaxes: Amaxes, paths: list[str], repeat: jax.Array | None) -> jax.Array | None:
    if paths[0] not in amaxes:
        return None
    return amaxes[paths[0]] if repeat is None else jnp.stack([amaxes[p] for p in paths])[repeat]


def _fold(key: jax.Array, paths: list[str], repeat: jax.Array | None) -> jax.Array:
    hashes = np.array([layer_hash(path) for path in paths])
    return jax.random.fold_in(key, hashes[0] if repeat is None else jnp.asarray(hashes)[repeat])

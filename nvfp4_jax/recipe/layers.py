"""The linear layers of a model, as paths and shapes, whatever holds the model.

A linear layer is where a parameter called `kernel` with two or more axes sits: that is what
`nn.Dense`, `nn.DenseGeneral`, `nnx.Linear`, `nnx.LinearGeneral`, attention's projections and
`nnx.Einsum` own. Nothing is imported from Flax: linen's dictionaries, NNX's modules and states,
and trees of `jax.ShapeDtypeStruct` are all pytrees with paths.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp

KERNEL = "kernel"


def layer_path(path: str | Iterable[str | int]) -> str:
    """A layer's path as recipes write it: `blocks/7/mlp/up` becomes `blocks_7/mlp/up`.

    NNX keeps blocks in a list, linen numbers them `blocks_7`; a recipe serves both. Takes a
    string or the names in turn, and leaves a path already written so as it is.
    """
    names = path.split("/") if isinstance(path, str) else [str(name) for name in path]
    joined: list[str] = []
    for name in names:
        if name.isdigit() and joined:
            joined[-1] += f"_{name}"
        else:
            joined.append(name)
    return "/".join(joined)


def linear_layers(params_or_model: Any) -> dict[str, tuple[int, ...]]:
    """The kernel shape of every linear layer, by path, blocks in the order of their numbers.

    Takes linen's parameters (with or without the outer `params`), an NNX module, state or pure
    dictionary, or the same with `jax.ShapeDtypeStruct` leaves.
    """
    found = {}
    for names, leaf in _named_leaves(params_or_model):
        if names and names[-1] == KERNEL and len(leaf.shape) >= 2:
            found[layer_path(names[:-1])] = tuple(leaf.shape)
    return {path: found[path] for path in sorted(found, key=_natural)}


def count_parameters(params_or_model: Any) -> int:
    """How many numbers all floating-point leaves hold together."""
    leaves = [leaf for _, leaf in _named_leaves(params_or_model)]
    return sum(math.prod(leaf.shape) for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.floating))


def _named_leaves(tree: Any) -> list[tuple[list[str], Any]]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    named = [([_name(key) for key in path], leaf) for path, leaf in leaves]
    return [(_trimmed(names), leaf) for names, leaf in named if hasattr(leaf, "shape")]


def _name(key: Any) -> str:
    return str(getattr(key, "name", getattr(key, "key", getattr(key, "idx", key))))


def _trimmed(names: list[str]) -> list[str]:
    # An nnx.Variable (and linen's Partitioned) is a node of its own: kernel/value.
    if len(names) > 1 and names[-1] in ("value", "raw_value") and names[-2] == KERNEL:
        names = names[:-1]
    return names[1:] if len(names) > 1 and names[0] == "params" else names


def _natural(path: str) -> list:
    # blocks_2 before blocks_10, as a reader expects; names of blocks before what stands alone
    return [(not any(c.isdigit() for c in path),), *map(_words, path.split("/"))]


def _words(name: str) -> tuple:
    return tuple(
        (part.isdigit(), int(part) if part.isdigit() else part)
        for part in re.split(r"(\d+)", name)
        if part
    )

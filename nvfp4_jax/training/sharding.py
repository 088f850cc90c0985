"""Where arrays live, said once: logical axes on one side, the mesh on the other.

Nothing in the step knows how many devices there are. It is traced over whole arrays; these tables
say over which axes of the mesh each logical axis is cut, and the compiler inserts the
communication. An axis that its devices cannot share evenly is not cut: every device has all of it.

Weights are cut twice. Over `tensor` by the features inside a layer, so that one of its two
products needs no communication (arXiv 1909.08053, section 3). Over `fsdp` by the other axis, as
storage: each device keeps its part of the weight and of both moments, and the whole is gathered
just before a product and dropped after it (arXiv 1910.02054, stage 3). Between layers the tokens
are cut over `tensor` as well, so that norms are not computed by all (arXiv 2205.05198, section 4).
Over `sequence` the tokens of a row are cut; where tokens meet, in convolution, scan and attention,
the heads are cut instead, and every device sees whole rows (arXiv 2309.14509).
"""

from __future__ import annotations

import contextlib
import fnmatch
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from nvfp4_jax.axes import axis_names, shard_count
from nvfp4_jax.models import placing

ACTIVATIONS: dict[str, tuple[str, ...]] = {  # logical axis -> axes of the mesh
    "microbatch": (),
    "batch": ("data", "fsdp"),
    "length": ("sequence",),
    "between": ("sequence", "tensor"),
    "whole": (),
    "hidden": (),
    "features": ("tensor",),
    "heads": ("tensor", "sequence"),
    "within": (),
}
PARAMETERS: dict[str, tuple[str, ...]] = {  # path -> its logical axes; all others are whole
    "*/in_proj/kernel": ("hidden", "features"),
    "*/attention/[qkv]/kernel": ("hidden", "features"),
    "*/mlp/up/kernel": ("hidden", "features"),
    "*/mlp/gate/kernel": ("hidden", "features"),
    "*/out_proj/kernel": ("features", "hidden"),
    "*/attention/o/kernel": ("features", "hidden"),
    "*/mlp/down/kernel": ("features", "hidden"),
    "embedding/weight": ("words", "hidden"),
    "head/kernel": ("hidden", "vocabulary"),
}
WEIGHTS = {"hidden": "fsdp", "features": "tensor", "vocabulary": "tensor", "words": ""}
BLOCK = 16  # a part of whole blocks is quantized where it lies


def sharding(mesh: Mesh, *logical: str) -> NamedSharding:
    """How an activation with these logical axes is laid out; none of them: replicated."""
    return NamedSharding(mesh, PartitionSpec(*(ACTIVATIONS[axis] or None for axis in logical)))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Of a step's batch (microbatches, rows, length)."""
    return sharding(mesh, "microbatch", "batch", "length")


def constrain(
    mesh: Mesh, activations: dict[str, tuple[str, ...]] = ACTIVATIONS
) -> Callable[[jax.Array, tuple[str, ...]], jax.Array]:
    """What `models.place` means on this mesh: a layout for the compiler to keep to."""

    def rule(x: jax.Array, axes: tuple[str, ...]) -> jax.Array:
        entries = (_dividing(mesh, activations[a], n) for a, n in zip(axes, x.shape, strict=True))
        layout = NamedSharding(mesh, PartitionSpec(*entries))
        return jax.lax.with_sharding_constraint(x, layout)

    return rule


@contextlib.contextmanager
def laid_out(mesh: Mesh | None) -> Iterator[None]:
    """While a step is traced: activations as the table says; nothing to say for one device."""
    if mesh is None or mesh.size == 1:
        yield
        return
    cut = frozenset(a for a, names in ACTIVATIONS.items() if shard_count(mesh, names) > 1)
    with placing(constrain(mesh), cut):
        yield


def parameter_sharding(mesh: Mesh, path: str, shape: tuple[int, ...]) -> NamedSharding:
    """How the parameter of this path (`blocks/0/mlp/up/kernel`) and its moments are laid out."""
    axes = _axes(path)
    if not axes:
        return NamedSharding(mesh, PartitionSpec())
    entries = [[n] if _shares(mesh, [n], size) else [] for n, size in _tensor_first(axes, shape)]
    _store(mesh, entries, axes, shape)
    return NamedSharding(mesh, PartitionSpec(*(tuple(entry) or None for entry in entries)))


def gathered_sharding(mesh: Mesh, path: str, shape: tuple[int, ...]) -> NamedSharding | None:
    """How this weight lies when it is multiplied; None where it is stored so."""
    stored = parameter_sharding(mesh, path, shape).spec
    entries = [axis_names(entry) for entry in stored]
    if not any("fsdp" in names for names in entries):
        return None
    kept = (tuple(name for name in names if name != "fsdp") or None for names in entries)
    return NamedSharding(mesh, PartitionSpec(*kept))


def feature_axis(path: str) -> int | None:
    """Which axis of this parameter is the features inside a layer, which `tensor` cuts."""
    axes = _axes(path)
    return axes.index("features") if "features" in axes else None


def state_shardings(mesh: Mesh, state: Any) -> Any:
    """A layout for each leaf of a `TrainState` (arrays or shapes): moments lie as their weights."""

    def layout(path: tuple, leaf: Any) -> NamedSharding:
        names = [key.key for key in path if isinstance(key, jax.tree_util.DictKey)]
        return parameter_sharding(mesh, names[-1] if names else "", leaf.shape)

    return jax.tree_util.tree_map_with_path(layout, state)


def placed_shapes(state: Any, shardings: Any) -> Any:
    """Shapes and dtypes of a state with the layout that each leaf is to have."""
    return jax.tree.map(
        lambda leaf, layout: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=layout),
        state,
        shardings,
    )


def rows_here(mesh: Mesh, batch: int, microbatches: int = 1) -> np.ndarray:
    """The rows of a batch that this process's devices compute, ascending: what it must read."""
    rows = batch // microbatches
    layout = sharding(mesh, "microbatch", "batch")
    slices = layout.addressable_devices_indices_map((microbatches, rows)).values()
    numbers = np.arange(batch).reshape(microbatches, rows)
    return np.unique(np.concatenate([numbers[index].reshape(-1) for index in slices]))


def _axes(path: str) -> tuple[str, ...]:
    return next((a for glob, a in PARAMETERS.items() if fnmatch.fnmatchcase(path, glob)), ())


def _tensor_first(axes: tuple[str, ...], shape: tuple[int, ...]) -> Iterator[tuple[str, int]]:
    """(axis of the mesh, size) for each axis of a weight; `fsdp` is left for `_store`."""
    for axis, size in zip(axes, shape, strict=True):
        yield ("" if WEIGHTS[axis] == "fsdp" else WEIGHTS[axis]), size


def _store(mesh: Mesh, entries: list[list[str]], axes: tuple[str, ...], shape: Any) -> None:
    """Cut a weight over `fsdp` too: the axis meant for it, or the other, in whole blocks if any.

    A single block stays whole: XLA would move its rounding out of reach of the proof of a step.
    """
    order = sorted(range(len(axes)), key=lambda i: WEIGHTS[axes[i]] != "fsdp")
    for unit in (BLOCK, 1):
        for i in order:
            if shape[i] > BLOCK and _shares(mesh, [*entries[i], "fsdp"], shape[i], unit):
                entries[i].append("fsdp")
                return


def _shares(mesh: Mesh, names: list[str], size: int, unit: int = 1) -> bool:
    """Whether `size` can be cut evenly over these axes of the mesh, in parts of whole units."""
    return all(names) and size % (shard_count(mesh, tuple(names)) * unit) == 0


def _dividing(mesh: Mesh, names: tuple[str, ...], size: int) -> tuple[str, ...] | None:
    """As many of the axes, from the first on, as can share `size` evenly."""
    while names and size % shard_count(mesh, names):
        names = names[:-1]
    return names or None

"""Letting XLA partition our arithmetic when the caller's mesh has explicit axes.

With explicit axes JAX asks every reshape and reduction how its result is sharded. Quantization
reshapes a lot (blocks, tiles, rotations) and its results must not depend on sharding at all, so
we hand the inside to the automatic partitioner and say only how the result is laid out.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec


def explicit_mesh(*arrays: jax.Array) -> Any | None:
    """The abstract mesh of the first array placed on explicit mesh axes, or None."""
    for array in arrays:
        mesh = jax.typeof(array).sharding.mesh
        if not mesh.empty and mesh.explicit_axes:
            return mesh
    return None


def varying(array: jax.Array) -> frozenset[str]:
    """Within `shard_map`: the mesh axes over which an array is known to differ between devices.

    None where `shard_map` does not keep track of it (`check_vma=False`).
    """
    return jax.typeof(array).manual_axis_type.varying


def to_vary(array: jax.Array, axes: frozenset[str]) -> jax.Array:
    """The array, said to vary over these axes too, so that its cotangent is summed over them.

    `lax.dot_general` does this by itself for an operand that varies less than the other; what is a
    `custom_vjp`, or a kernel that tells nothing of it, has to be helped.
    """
    missing = axes - varying(array)
    return jax.lax.pcast(array, tuple(sorted(missing)), to="varying") if missing else array


def run_automatic(fn: Callable, mesh: Any | None, out_sharding: Any, *args: Any) -> Any:
    """`fn(*args)` with the mesh's explicit axes automatic inside; plain `fn(*args)` without a mesh.

    Args:
      fn: a function of arrays.
      mesh: what `explicit_mesh` returned.
      out_sharding: a sharding for each array of the result, as a pytree of its structure.
      *args: arrays (or None).
    """
    if mesh is None:
        return fn(*args)
    return jax.sharding.auto_axes(fn, axes=tuple(mesh.explicit_axes), out_sharding=out_sharding)(
        *args
    )


def fitting_sharding(mesh: Any, spec: PartitionSpec, shape: tuple[int, ...]) -> NamedSharding:
    """`spec` where it divides `shape` evenly, replicated along the other axes."""
    entries = tuple(spec) + (None,) * (len(shape) - len(spec))
    return NamedSharding(
        mesh,
        PartitionSpec(
            *(
                entry if size % shard_count(mesh, axis_names(entry)) == 0 else None
                for size, entry in zip(shape, entries, strict=True)
            )
        ),
    )


def axis_names(entry: Any) -> tuple[str, ...]:
    """The mesh axes that one entry of a PartitionSpec names."""
    return () if entry is None else (entry,) if isinstance(entry, str) else tuple(entry)


def shard_count(mesh: Any, names: tuple[str, ...]) -> int:
    """Into how many parts these mesh axes split what is sharded over them."""
    return math.prod(mesh.shape[name] for name in names)


def of_a_shard(run: Callable) -> Callable:
    """`run` for what `custom_partitioning` calls with the arrays of one device.

    It is traced in the caller's mesh, if one is in force (`jax.set_mesh`). There, arrays made on
    the way would be laid out over the devices again; with all axes manual they are the shard's.
    """

    def shard(*arrays: Any) -> Any:
        mesh = jax.sharding.get_abstract_mesh()
        if mesh.empty:
            return run(*arrays)
        manual = mesh.update(axis_types=(AxisType.Manual,) * len(mesh.axis_names))
        with jax.sharding.use_abstract_mesh(manual):
            return run(*arrays)

    return shard

"""What a GPU computes piece by piece, so that its bits do not depend on how many pieces it has.

XLA's GPU compiler chooses by shapes: how many threads add up a row, which kernel multiplies, what
is fused (and a product fused with a sum rounds once, not twice). A device with half the rows has
half the shape. So under `--sum-parts P --feature-parts F` every GPU computes one part of the rows
and one of the features at a time, whether it has one such piece or all P F of them. Barriers before
and after keep pieces from being fused with each other or with what is around: every piece is
compiled alike, with the fused kernels of a single device, which could not be mapped.

Backward, a piece is computed again from its operands and differentiated as a whole, likewise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap
from jax.sharding import Mesh, PartitionSpec

from nvfp4_jax.axes import shard_count
from nvfp4_jax.kernels.one_by_one import set_apart
from nvfp4_jax.models.pieces import Function, Operand, Rule
from nvfp4_jax.training.sharding import ACTIVATIONS

ROWS, FEATURES = ACTIVATIONS["batch"], ACTIVATIONS["features"]
Axes = tuple[int | None, ...]  # of features, for each array
Arrays = tuple[jax.Array, ...]
Functions = Callable[..., Arrays]


def one_at_a_time(mesh: Mesh | None, feature_parts: int) -> Rule:
    """What `models.pieces` asks, under `jax.vmap` over parts of the rows.

    Args:
      mesh: the training mesh; parts of rows are shared over `ROWS`, features over `FEATURES`.
      feature_parts: a multiple of the devices that share features.
    """
    each = feature_parts if mesh is None else feature_parts // shard_count(mesh, FEATURES)

    def rule(function: Function, operands: tuple[Operand, ...], result: int | None) -> jax.Array:
        arrays = tuple(array for array, _ in operands if array is not None)
        axes = tuple(axis for _, axis in operands)
        smooth = [i for i, a in enumerate(arrays) if jnp.issubdtype(a.dtype, jnp.inexact)]
        kept = tuple(axes[i] for i in smooth)
        assert all((axis is None) == (result is None) for axis in kept)  # else: sums over features

        def pull(dy: jax.Array, *arrays: jax.Array) -> Arrays:
            def of_smooth(*some: jax.Array) -> jax.Array:
                every = dict(enumerate(arrays)) | dict(zip(smooth, some, strict=True))
                return function(*every.values())

            return jax.vjp(of_smooth, *(arrays[i] for i in smooth))[1](dy)

        forward = _mapped(lambda *arrays: (function(*arrays),), mesh, each, axes, (result,))
        backward = _mapped(pull, mesh, each, (result, *axes), kept)

        @jax.custom_vjp
        def whole(*arrays: jax.Array) -> jax.Array:
            return forward(*arrays)[0]

        def gradients(arrays: Arrays, dy: jax.Array) -> tuple[jax.Array | None, ...]:
            found: dict[int, Any] = dict(zip(smooth, backward(dy, *arrays), strict=True))
            return tuple(found.get(i) for i in range(len(arrays)))

        whole.defvjp(lambda *arrays: (whole(*arrays), arrays), gradients)
        return whole(*arrays)

    return rule


def _mapped(function: Functions, mesh: Mesh | None, each: int, axes: Axes, results: Axes) -> Any:
    """`function`, of which `jax.vmap` makes one piece after the other."""
    run = custom_vmap(function)

    @run.def_vmap
    def _(_parts: int, mapped: list[bool], *arrays: jax.Array) -> tuple[Arrays, Any]:
        def local(*arrays: jax.Array) -> Arrays:
            return _of_a_device(function, mapped, each, axes, results, arrays)

        if mesh is not None:
            local = jax.shard_map(
                local,
                mesh=mesh,
                in_specs=tuple(_spec(*of) for of in zip(axes, mapped, strict=True)),
                out_specs=tuple(_spec(axis, True) for axis in results),
                check_vma=False,
            )
        return local(*arrays), (True,) * len(results)

    return run


def _spec(axis: int | None, mapped: bool) -> PartitionSpec:
    """How an array with this axis of features is cut; one that is mapped has parts before it."""
    rows = (ROWS,) if mapped else ()
    return PartitionSpec(*rows, *(() if axis is None else (*(None,) * axis, FEATURES)))


def _of_a_device(
    function: Functions,
    mapped: Sequence[bool],
    each: int,
    axes: Axes,
    results: Axes,
    arrays: Arrays,
) -> Arrays:
    """All pieces of a device, `each` of the features for every part of the rows that it has."""
    parts = next(a.shape[0] for a, has in zip(arrays, mapped, strict=True) if has)
    cut = each if any(axis is not None for axis in axes) else 1
    rows = []
    for part in range(parts):
        of_part = [a[part] if has else a for a, has in zip(arrays, mapped, strict=True)]
        pieces = [_piece(function, _cut(of_part, axes, i, cut)) for i in range(cut)]
        every = zip(*pieces, strict=True)
        rows.append([_joined(ys, axis) for ys, axis in zip(every, results, strict=True)])
    return tuple(jnp.stack(ys) for ys in zip(*rows, strict=True))


def _cut(arrays: Sequence[jax.Array], axes: Axes, index: int, count: int) -> list[jax.Array]:
    def own(array: jax.Array, axis: int | None) -> jax.Array:
        if axis is None:
            return array
        size = array.shape[axis] // count
        return lax.slice_in_dim(array, index * size, (index + 1) * size, axis=axis)

    return [own(array, axis) for array, axis in zip(arrays, axes, strict=True)]


def _piece(function: Functions, arrays: Sequence[jax.Array]) -> Arrays:
    return set_apart(*function(*set_apart(*arrays)))


def _joined(pieces: Sequence[jax.Array], axis: int | None) -> jax.Array:
    return pieces[0] if axis is None else jnp.concatenate(pieces, axis)

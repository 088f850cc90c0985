"""Gradients whose sums are taken in one order, whatever the mesh.

FP32 addition is not associative. A gradient summed over the tokens of one device, and then over
devices, differs in its last bits from the same gradient of another mesh; a step of training carries
the difference on, until somewhere a value rounds to another bf16 or to another 4-bit code, and two
runs are no longer the same run. Here the batch is cut into a fixed number of parts, rows 0 .. n-1,
n .. 2n-1, and so on. Each part's gradient is summed by itself, and the parts pairwise:

    ((g0 + g1) + (g2 + g3)) + ((g4 + g5) + (g6 + g7))

A device that holds 2, 4 or all of the parts holds a subtree of this tree, and adds it up first, as
one device alone would. Over devices each adds up a slice of the parameter, of all devices' sums.

Over `tensor` sums are of another kind: a product that contracts the features inside a layer is
shared by devices that each have some of them. Such products are computed in a fixed number of parts
of the features too (`nvfp4_jax.ordered_product`), and what those devices have alike, the residual
stream and the norms between layers, is whole on each of them.

What is one for the whole batch stays so: amaxes and random bits are those of all its tokens (see
`nvfp4_jax.together`), so the parts never show but in the order of sums.

What lies between the sums must be compiled alike whatever the mesh. On CPUs plain operations do,
which can be mapped over parts, with barriers where a product would be fused with a sum. On GPUs
nearly everything depends on shapes, so there it is computed piece by piece (`training.pieces`),
products one by one (`kernels.one_by_one`), and no kernel is chosen by trial (`training.exact`).

The bits are then the same on every mesh of `data`, `fsdp` and `tensor` of one kind of device
(BENCHMARKS.md, "The same run on any mesh"). It costs memory, a part's whole FP32 gradient of a
layer at a time, and on one device a pass over it for every part; weights are gathered in FP32.
Evaluations, of which nothing follows, are summed in any order.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from nvfp4_jax.axes import shard_count
from nvfp4_jax.kernels.capability import capability
from nvfp4_jax.kernels.one_by_one import set_apart
from nvfp4_jax.models import cutting, placing, plain_operations
from nvfp4_jax.ordered_product import sum_in_pairs
from nvfp4_jax.together import FeatureParts
from nvfp4_jax.training.pieces import one_at_a_time
from nvfp4_jax.training.sharding import (
    ACTIVATIONS,
    constrain,
    feature_axis,
    gathered_sharding,
    parameter_sharding,
)
from nvfp4_jax.training.state import Parameters

ROWS = ACTIVATIONS["batch"]  # the mesh axes that rows, and with them parts, are cut over
INSIDE = {  # where activations of one part live: rows are mapped over, tokens and sums not cut
    axis: names if axis in ("features", "heads") else () for axis, names in ACTIVATIONS.items()
}
Arrays = dict[str, jax.Array]
Loss = Callable[[Parameters, Arrays], jax.Array]


def ordered_gradients(
    loss: Loss,
    parameters: Parameters,
    batch: Arrays,
    parts: int,
    mesh: Mesh | None,
    feature_parts: int = 1,
) -> tuple[jax.Array, Parameters]:
    """(sum of the loss over `parts` parts of the batch, its gradients), summed as a tree of parts.

    Args:
      loss: of a part; what it is summed over must be rows, and what it quantizes `together`.
      parameters: FP32, by path.
      batch: arrays (rows, ...).
      parts: a power of two that divides the rows, and a multiple of the devices that share them.
      mesh: the training mesh, with no axes but `data`, `fsdp` and `tensor`; None for one device.
      feature_parts: that features inside a layer are computed in, where pieces are (`pieces`).
    """
    cut = {name: _cut(array, parts, mesh) for name, array in batch.items()}
    layouts = {path: _when_multiplied(mesh, path, w.shape) for path, w in parameters.items()}

    def of_part(parameters: Parameters, part: Arrays) -> jax.Array:
        ordered: Any = {p: _summed_in_order(w, layouts[p]) for p, w in parameters.items()}
        return loss(ordered, part)

    each = jax.vmap(
        jax.value_and_grad(of_part),
        in_axes=(None, 0),
        out_axes=(0, None),
        spmd_axis_name=None if mesh is None else ROWS,
    )
    with _same_everywhere(mesh, feature_parts), _laid_out(mesh):
        losses, gradients = each(parameters, cut)
    everywhere = None if mesh is None else NamedSharding(mesh, PartitionSpec())
    return tree_sum(losses, everywhere), lax.optimization_barrier(gradients)


def _when_multiplied(mesh: Mesh | None, path: str, shape: tuple[int, ...]) -> NamedSharding | None:
    """How a weight lies when it is multiplied: cut over `tensor` by features, else whole."""
    if mesh is None:
        return None
    if feature_axis(path) is None:
        return NamedSharding(mesh, PartitionSpec())
    return gathered_sharding(mesh, path, shape) or parameter_sharding(mesh, path, shape)


def feature_parts(path: str, parts: int) -> FeatureParts | None:
    """How the products of the weight of this path are cut in `parts` of the features."""
    axis = feature_axis(path)
    return None if axis is None or parts == 1 else FeatureParts(("in", "out")[axis], parts)


def _same_everywhere(
    mesh: Mesh | None, feature_parts: int
) -> contextlib.AbstractContextManager[None]:
    """On GPUs one piece after the other; on CPUs plain operations."""
    if capability() is None:
        return plain_operations()
    return cutting(one_at_a_time(mesh, feature_parts))


def _laid_out(mesh: Mesh | None) -> contextlib.AbstractContextManager[None]:
    """As on every mesh: one device, too, cuts heads apart as several do."""
    return placing(None if mesh is None else constrain(mesh, INSIDE), frozenset({"heads"}))


def whole(parameters: Parameters, mesh: Mesh | None) -> Parameters:
    """All of every array on every device, so that a sum over it is taken as one device takes it."""
    if mesh is not None:
        everywhere = NamedSharding(mesh, PartitionSpec())
        parameters = lax.with_sharding_constraint(parameters, everywhere)
    return dict(zip(parameters, set_apart(*parameters.values()), strict=True))


def _cut(array: jax.Array, parts: int, mesh: Mesh | None) -> jax.Array:
    cut = array.reshape(parts, -1, *array.shape[1:])
    if mesh is None:
        return cut
    return lax.with_sharding_constraint(cut, NamedSharding(mesh, PartitionSpec(ROWS)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _summed_in_order(weight: jax.Array, layout: NamedSharding | None) -> jax.Array:
    """The weight, laid out so; its gradient is the ordered sum over mapped parts."""
    return weight if layout is None else lax.with_sharding_constraint(weight, layout)


def _forward(weight: jax.Array, layout: NamedSharding | None) -> tuple[jax.Array, None]:
    return _summed_in_order(weight, layout), None


def _backward(layout: NamedSharding | None, _: None, slope: jax.Array) -> tuple[jax.Array]:
    @custom_vmap
    def total(slope: jax.Array) -> jax.Array:
        return slope

    @total.def_vmap
    def _(_parts: int, _mapped: list[bool], slopes: jax.Array) -> tuple[jax.Array, bool]:
        return tree_sum(slopes, layout), False

    return (total(slope),)


_summed_in_order.defvjp(_forward, _backward)


def tree_sum(parts: jax.Array, layout: NamedSharding | None = None) -> jax.Array:
    """The sum over the first axis, a power of two, pair by pair.

    Args:
      parts: (parts, ...); on a mesh parts are cut over `ROWS`.
      layout: of the sum, and of a part but for `ROWS`; None for one device.
    """
    if layout is None:
        return sum_in_pairs(parts)
    devices = shard_count(layout.mesh, ROWS)
    return jax.shard_map(
        functools.partial(_over_devices, devices=devices),
        mesh=layout.mesh,
        in_specs=PartitionSpec(ROWS, *layout.spec),
        out_specs=layout.spec,
        check_vma=False,
    )(parts)


def _over_devices(parts: jax.Array, devices: int) -> jax.Array:
    """Each device adds up one slice of all the devices' sums, and all gather the slices."""
    own = sum_in_pairs(parts)
    slices = jnp.pad(own.reshape(-1), (0, -own.size % devices)).reshape(devices, -1)
    received = lax.all_to_all(slices, ROWS, split_axis=0, concat_axis=0, tiled=True)
    total = lax.all_gather(sum_in_pairs(received), ROWS, tiled=True)
    return total[: own.size].reshape(own.shape)

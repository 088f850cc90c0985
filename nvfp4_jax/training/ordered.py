"""Gradients whose sums over the batch are taken in one order, whatever the mesh.

FP32 addition is not associative. A gradient summed over the tokens of one device, and then over
devices, differs in its last bits from the same gradient of another mesh; a step of training carries
the difference on, until somewhere a value rounds to another bf16 or to another 4-bit code, and two
runs are no longer the same run. Here the batch is cut into a fixed number of parts, rows 0 .. n-1,
n .. 2n-1, and so on. Each part's gradient is summed by itself, and the parts pairwise:

    ((g0 + g1) + (g2 + g3)) + ((g4 + g5) + (g6 + g7))

A device that holds 2, 4 or all of the parts holds a subtree of this tree, and adds it up first, as
one device alone would. Over devices each adds up a slice of the parameter, of all devices' sums.

What is one for the whole batch stays so: amaxes and random bits are those of all its tokens (see
`nvfp4_jax.together`), so the parts never show but in the order of sums.

It costs memory, a part's whole FP32 gradient of a layer at a time, and on one device a pass over it
for every part; weights are gathered in FP32, and the model's own kernels give way to plain
operations, which can be mapped. On CPUs the bits are then the same on every mesh of `data` and
`fsdp`. On GPUs they are not, from the first step on, even where no kernel is chosen by trial: what
else differs there is not known (BENCHMARKS.md, "The same run on any mesh").
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from nvfp4_jax.models import plain_operations
from nvfp4_jax.operands import emulated
from nvfp4_jax.precision import GEMMS, LinearPrecision, rotation
from nvfp4_jax.training.binding import Table
from nvfp4_jax.training.errors import UsageError
from nvfp4_jax.training.mesh import MeshShape
from nvfp4_jax.training.sharding import ACTIVATIONS
from nvfp4_jax.training.state import Parameters

ROWS = ACTIVATIONS["batch"]  # the mesh axes that rows, and with them parts, are cut over
Arrays = dict[str, jax.Array]
Loss = Callable[[Parameters, Arrays], jax.Array]


def ordered_gradients(
    loss: Loss, parameters: Parameters, batch: Arrays, parts: int, mesh: Mesh | None
) -> tuple[jax.Array, Parameters]:
    """(sum of the loss over `parts` parts of the batch, its gradients), summed as a tree of parts.

    Args:
      loss: of a part; what it is summed over must be rows, and what it quantizes `together`.
      parameters: FP32.
      batch: arrays (rows, ...).
      parts: a power of two that divides the rows, and a multiple of the devices that share them.
      mesh: the training mesh, with no axes but `data` and `fsdp`; None for one device.
    """
    cut = {name: _cut(array, parts, mesh) for name, array in batch.items()}

    def of_part(parameters: Parameters, part: Arrays) -> jax.Array:
        return loss(jax.tree.map(lambda w: _summed_in_order(w, mesh), parameters), part)

    each = jax.vmap(
        jax.value_and_grad(of_part),
        in_axes=(None, 0),
        out_axes=(0, None),
        spmd_axis_name=None if mesh is None else ROWS,
    )
    with plain_operations():
        losses, gradients = each(parameters, cut)
    return tree_sum(losses, mesh), lax.optimization_barrier(gradients)


def check_parts(config: Any, mesh: MeshShape, tables: Iterable[Table]) -> None:
    """Raise a `UsageError` for a `sum_parts` that cannot be honoured; None always can.

    `config` has `sum_parts`, `batch`, `microbatches`, `length` and `gather`, as a `TrainConfig`.
    """
    parts = config.sum_parts
    if parts is None:
        return
    flag, rows = f"--sum-parts {parts}", config.batch // config.microbatches
    if parts < 1 or parts & (parts - 1):
        raise UsageError(f"{flag}: give a power of two, the parts are added pair by pair")
    if mesh.tensor * mesh.sequence > 1:
        raise UsageError(
            f"{flag}: --mesh {mesh} cuts sums over features or tokens, whose order depends on the "
            "mesh; use data and fsdp alone, or leave --sum-parts out"
        )
    if rows % parts or parts % mesh.row_shards:
        raise UsageError(
            f"{flag}: it must divide the {rows} rows of a microbatch (--batch / --microbatches) "
            f"and be a multiple of the {mesh.row_shards} devices that share them (--mesh {mesh})"
        )
    if config.gather == "packed":
        raise UsageError(f"{flag} gathers weights in FP32; leave out --gather packed")
    for path, precision in (entry for table in tables for entry in table):
        _check_precision(flag, path, precision, rows // parts * config.length)


def _check_precision(flag: str, path: str, precision: LinearPrecision, tokens: int) -> None:
    block = max(rotation(precision.wgrad.input)[0], 1)
    if tokens % block:
        raise UsageError(
            f"{flag}: {path} rotates blocks of {block} tokens (rht), and a part has {tokens}; give "
            "fewer parts, or another --length"
        )
    if precision.residuals == "packed":
        raise UsageError(
            f"{flag}: {path} keeps packed residuals, and parts are summed from the input itself; "
            "use a recipe without residuals = 'packed'"
        )
    if any(emulated(precision, gemm, None) is None for gemm in GEMMS):
        raise UsageError(f"{flag} emulates 4-bit products, and this GPU has them; leave it out")


def whole(parameters: Parameters, mesh: Mesh | None) -> Parameters:
    """All of every array on every device, so that a sum over it is taken as one device takes it."""
    if mesh is not None:
        everywhere = NamedSharding(mesh, PartitionSpec())
        parameters = lax.with_sharding_constraint(parameters, everywhere)
    return lax.optimization_barrier(parameters)


def _cut(array: jax.Array, parts: int, mesh: Mesh | None) -> jax.Array:
    cut = array.reshape(parts, -1, *array.shape[1:])
    if mesh is None:
        return cut
    return lax.with_sharding_constraint(cut, NamedSharding(mesh, PartitionSpec(ROWS)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _summed_in_order(weight: jax.Array, mesh: Mesh | None) -> jax.Array:
    """The weight, whole on every device; its gradient is the ordered sum over mapped parts."""
    if mesh is None:
        return weight
    return lax.with_sharding_constraint(weight, NamedSharding(mesh, PartitionSpec()))


def _forward(weight: jax.Array, mesh: Mesh | None) -> tuple[jax.Array, None]:
    return _summed_in_order(weight, mesh), None


def _backward(mesh: Mesh | None, _: None, slope: jax.Array) -> tuple[jax.Array]:
    @custom_vmap
    def total(slope: jax.Array) -> jax.Array:
        return slope

    @total.def_vmap
    def _(_parts: int, _mapped: list[bool], slopes: jax.Array) -> tuple[jax.Array, bool]:
        return tree_sum(slopes, mesh), False

    return (total(slope),)


_summed_in_order.defvjp(_forward, _backward)


def tree_sum(parts: jax.Array, mesh: Mesh | None = None) -> jax.Array:
    """The sum over the first axis, a power of two, pair by pair; on a mesh cut over `ROWS`.

    The barrier keeps the multiplication that made a part from being fused with the addition, which
    would then round once (FMA) where a sum over devices rounds twice.
    """
    parts = lax.optimization_barrier(parts)
    if mesh is None:
        return _tree(parts)
    over_devices = functools.partial(_over_devices, devices=mesh.size)
    whole = PartitionSpec()
    return jax.shard_map(
        over_devices, mesh=mesh, in_specs=PartitionSpec(ROWS), out_specs=whole, check_vma=False
    )(parts)


def _over_devices(parts: jax.Array, devices: int) -> jax.Array:
    """Each device adds up one slice of all the devices' sums, and all gather the slices."""
    own = _tree(parts)
    slices = jnp.pad(own.reshape(-1), (0, -own.size % devices)).reshape(devices, -1)
    received = lax.all_to_all(slices, ROWS, split_axis=0, concat_axis=0, tiled=True)
    total = lax.all_gather(_tree(received), ROWS, tiled=True)
    return total[: own.size].reshape(own.shape)


def _tree(parts: jax.Array) -> jax.Array:
    while parts.shape[0] > 1:
        parts = parts[0::2] + parts[1::2]
    return parts[0]

"""What a linear keeps from its forward pass for its backward pass.

Wgrad needs the input, Dgrad the weight, each in a quantized form that the forward pass may have at
hand already. Which form is kept changes memory and time, never bits:

| kept           | input, bits an element | in the backward pass                              |
|----------------|------------------------|---------------------------------------------------|
| the tensor     | 16                     | quantized then                                    |
| the operand    | 16                     | multiplied as it is; free where one read made both |
| packed         | 4.5 in NVFP4           | unpacked, if the recipe says `residuals = "packed"` |

An operand of 4-bit codes is packed as it is. A weight in square tiles has the same values for Fprop
and Dgrad, so it is quantized once; as codes, which are contracted along their last axis, from one
read for both. Where its parts lie on several devices it can be kept, and gathered, packed: each
device unpacks the whole for each use.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import jax
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array

from nvfp4_jax.axes import fitting_sharding
from nvfp4_jax.contraction import Dims, merged_spec
from nvfp4_jax.kernels.request import Native, Operand, Packed
from nvfp4_jax.kernels.select import select, select_native
from nvfp4_jax.operands import emulated
from nvfp4_jax.precision import GEMMS, LinearPrecision
from nvfp4_jax.quantizer import Quantizer

LINEAR_INPUT = "linear_input"


class Keep(NamedTuple):
    """How the two tensors of a linear are kept."""

    input: Literal["tensor", "operand", "packed"] = "tensor"
    weight: Literal["tensor", "operand", "packed"] = "tensor"


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Kept:
    """The residuals of one linear, and what its tensors were."""

    input: Array | Operand | Packed
    weight: Array | Operand | Packed
    lhs: Any = field(metadata={"static": True})  # shape, dtype and sharding
    rhs: Any = field(metadata={"static": True})


def plan(
    precision: LinearPrecision,
    implementation: str | None,
    explicit: bool,
    matrix: bool,
    gathered: bool = False,
) -> Keep:
    """What to keep: packed if the recipe says so, else what saves a pass over memory.

    On a mesh with explicit axes the tensors themselves are kept, whose sharding is known. `matrix`
    is as of `operands.emulated`, `gathered` whether a weight travels before it is multiplied.
    """
    native = emulated(precision, "wgrad", implementation, matrix) is None
    if precision.residuals == "packed":
        input = "operand" if native else "packed"
    else:
        kernels = (native and select_native(implementation)) or select(implementation)
        one_read = kernels.ONE_READ and precision.wgrad.input != "bf16"
        input = "operand" if one_read and not explicit else "tensor"
    if explicit or not _same_both_ways(precision):
        return Keep(input, "tensor")
    on_codes = any(emulated(precision, g, implementation, matrix) is None for g in GEMMS[:2])
    packed = gathered and not on_codes and weight_packs(precision)
    return Keep(input, "packed" if packed else "operand")


def weight_packs(precision: LinearPrecision) -> bool:
    """Whether codes of the weight serve both its uses: it can travel and be kept as such."""
    return _same_both_ways(precision) and precision.fprop.weight.format == "nvfp4"


def _same_both_ways(precision: LinearPrecision) -> bool:
    """Whether Fprop and Dgrad see the same weight, whichever axis they contract."""
    weight = precision.fprop.weight
    if weight != precision.dgrad.weight or not isinstance(weight, Quantizer):
        return False
    rows, length = weight.block or (1, 1)
    return rows == length and not weight.rht and weight.rounding == "nearest"


def named(kept: Array | Operand | Packed) -> Any:
    """What is kept of the input under its name, so that `jax.checkpoint` can be told to keep it.

    jax.checkpoint(block, policy=save_only_these_names("linear_input"))
    """
    return jax.tree.map(lambda leaf: checkpoint_name(leaf, LINEAR_INPUT), kept)


def kept_shardings(mesh: Any, run: Callable, dims: Dims, y: Any, lhs: Array, *rest: Any) -> Any:
    """On explicit axes: how the results (y, kept input, kept weight) of `run` are laid out."""
    if mesh is None:
        return None
    spec = merged_spec(tuple(jax.typeof(lhs).sharding.spec), dims)

    def place(leaf: Any) -> Any:
        if isinstance(leaf, Native):  # contracts the first axis: it lies transposed
            turned = PartitionSpec(*spec[::-1])
            return jax.tree.map(lambda part: fitting_sharding(mesh, turned, part.shape), leaf)
        if leaf.ndim != len(spec):
            return NamedSharding(mesh, PartitionSpec())
        return fitting_sharding(mesh, PartitionSpec(*spec), leaf.shape)

    _, *kept = jax.eval_shape(run, *jax.tree.map(_unplaced, (lhs, *rest)))
    return (y, *jax.tree.map(place, kept, is_leaf=lambda leaf: isinstance(leaf, Native)))


def _unplaced(array: Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(array.shape, array.dtype)


def laid_out_packed(packed: Packed, layout: NamedSharding) -> Packed:
    """The packed weight laid out as it is to be multiplied: what travels are codes and scales."""

    def place(leaf: Array) -> Array:
        if leaf.ndim != len(layout.spec):
            return leaf  # the tensor scale
        fitting = fitting_sharding(layout.mesh, layout.spec, leaf.shape)
        return jax.lax.with_sharding_constraint(leaf, fitting)

    return jax.tree.map(place, packed)

"""`lax.dot_general`'s dimension numbers, in one place.

However many axes a product has, quantization wants to know three things of an operand: which axis
is contracted (blocks lie along it), which are rows, and which are batch. `Dims` says so, `merge`
reshapes an operand to (batch, rows, contraction) in the order its axes already have, so that the
usual layouts move no data, and `restore` puts a product back into an operand's layout.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

DimensionNumbers = tuple[
    tuple[tuple[int, ...], tuple[int, ...]], tuple[tuple[int, ...], tuple[int, ...]]
]


@dataclass(frozen=True)
class Dims:
    """The axes of one operand: batch, free (kept in the product), and contracted."""

    batch: tuple[int, ...]
    free: tuple[int, ...]
    contract: tuple[int, ...]

    def swapped(self) -> Dims:
        """The same operand in the product that contracts what was free: W in Dgrad, x in Wgrad."""
        return Dims(self.batch, self.contract, self.free)


@dataclass(frozen=True)
class Axes:
    """Which axis of a merged operand is what; `batch` is None where there is no batch axis."""

    batch: int | None
    contract: int

    def swapped(self) -> Axes:
        """In the product that contracts what was free: W in Dgrad, x in Wgrad."""
        free = ({0, 1, 2} if self.batch is not None else {0, 1}) - {self.batch, self.contract}
        return Axes(self.batch, *free)


@dataclass(frozen=True)
class Merged:
    """An operand with one axis a group."""

    array: Array
    axes: Axes

    @property
    def contract(self) -> int:
        """The axis that is contracted."""
        return self.axes.contract

    @property
    def batch(self) -> int | None:
        """The batch axis, if there is one."""
        return self.axes.batch

    def swapped(self) -> Merged:
        """The same array in the product that contracts what was free."""
        return Merged(self.array, self.axes.swapped())

    def with_array(self, array: Array) -> Merged:
        """The same axes for another array."""
        return Merged(array, self.axes)


def operand_dims(
    numbers: DimensionNumbers, lhs_shape: tuple[int, ...], rhs_shape: tuple[int, ...]
) -> tuple[Dims, Dims]:
    """The `Dims` of both operands of `lax.dot_general`.

    Raises:
      ValueError: an axis out of range, named twice, without a partner or of another size than it.
    """
    (lhs_contract, rhs_contract), (lhs_batch, rhs_batch) = numbers
    if len(lhs_contract) != len(rhs_contract) or len(lhs_batch) != len(rhs_batch):
        raise ValueError(f"dimension_numbers {numbers} pair different numbers of axes")
    lhs = _dims("lhs", lhs_batch, lhs_contract, len(lhs_shape))
    rhs = _dims("rhs", rhs_batch, rhs_contract, len(rhs_shape))
    pairs = zip((*lhs.batch, *lhs.contract), (*rhs.batch, *rhs.contract), strict=True)
    for a, b in pairs:
        if lhs_shape[a] != rhs_shape[b]:
            raise ValueError(
                f"lhs of shape {lhs_shape} has {lhs_shape[a]} along axis {a}, and rhs of shape "
                f"{rhs_shape} has {rhs_shape[b]} along its partner, axis {b}; they must be equal"
            )
    return lhs, rhs


def merge(x: Array, dims: Dims) -> Merged:
    """`x` reshaped to at most (batch, free, contraction), the last two in either order."""
    groups = _groups(dims)
    order = tuple(axis for group in groups for axis in group)
    x = x if order == tuple(range(x.ndim)) else jnp.transpose(x, order)
    sizes = tuple(math.prod(x.shape[axis] for axis in places) for places in _places(groups))
    return Merged(x.reshape(sizes), merged_axes(dims))


def merged_axes(dims: Dims) -> Axes:
    """What `merge` makes of these dims."""
    groups = _groups(dims)
    contract = len(groups) - 1 if groups[-1] == dims.contract else len(groups) - 2
    return Axes(0 if dims.batch else None, contract)


def merged_spec(spec: tuple[Any, ...], dims: Dims) -> tuple[Any, ...]:
    """How a merged tensor is sharded: each group as its first axis, which leads the others."""
    entries = spec + (None,) * (1 + max((*dims.batch, *dims.free, *dims.contract)))
    return tuple(entries[group[0]] if group else None for group in _groups(dims))


def _groups(dims: Dims) -> list[tuple[int, ...]]:
    """The groups in the order in which the axes lie, or, if they lie mixed, contraction last."""
    batch = [dims.batch] if dims.batch else []
    groups = [dims.free, dims.contract]
    if dims.free and dims.contract and dims.contract[0] < dims.free[0]:
        groups.reverse()
    order = [axis for group in (*batch, *groups) for axis in group]
    return [*batch, *(groups if order == sorted(order) else (dims.free, dims.contract))]


def _places(groups: list[tuple[int, ...]]) -> list[range]:
    """Where each group's axes are once they stand in order."""
    ends = list(accumulate(len(group) for group in groups))
    return [range(end - len(group), end) for end, group in zip(ends, groups, strict=True)]


def product_numbers(a: Merged, b: Merged) -> DimensionNumbers:
    """Dimension numbers of the product of two merged operands: (batch, a's free, b's free)."""
    batch = ((a.batch,), (b.batch,)) if a.batch is not None and b.batch is not None else ((), ())
    return ((a.contract,), (b.contract,)), batch


def restore(product: Array, shape: tuple[int, ...], order: tuple[int, ...]) -> Array:
    """A merged product in the layout of an operand of `shape`.

    `order` lists the operand's axes as the product has them: batch, then rows, then columns.
    """
    x = product.reshape(tuple(shape[axis] for axis in order))
    if order == tuple(range(len(order))):
        return x
    inverse = sorted(range(len(order)), key=lambda position: order[position])
    return jnp.transpose(x, inverse)


def _dims(name, batch, contract, ndim):
    used = (*batch, *contract)
    if len(set(used)) != len(used) or any(not 0 <= axis < ndim for axis in used):
        raise ValueError(
            f"{name} has {ndim} axes; batch {tuple(batch)} and contracting {tuple(contract)} must "
            "be different axes of it, counted from 0"
        )
    free = tuple(axis for axis in range(ndim) if axis not in used)
    return Dims(tuple(batch), free, tuple(contract))

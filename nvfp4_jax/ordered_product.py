"""A product as many small ones, all of one size, whose sums are taken in one order.

How a matrix product adds up depends on its sizes: at the edge of a tile a row is summed otherwise
than inside one, and a longer contraction is cut elsewhere. Devices that share a product multiply
smaller matrices, so its last bits would depend on the mesh. Here rows, columns and contraction are
cut in fixed numbers of equal parts before anybody shares them: whoever computes, the products are
the same small ones, and those over parts of the contraction are added up in pairs:

    y[r, c] = (a[r, 0] b[0, c] + a[r, 1] b[1, c]) + (a[r, 2] b[2, c] + a[r, 3] b[3, c])

all in FP32, before tensor scales and rounding. `multiply_apart` leaves the parts of the contraction
apart, for a caller who has them to add up.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array

from nvfp4_jax.contraction import Axes, Merged
from nvfp4_jax.kernels.capability import capability
from nvfp4_jax.kernels.one_by_one import one_by_one
from nvfp4_jax.operands import Scaled
from nvfp4_jax.product import multiply, scale_sums


@dataclass(frozen=True)
class Cuts:
    """In how many equal parts a product is computed.

    Attributes:
      rows: of the first operand's free axis.
      columns: of the second's.
      sums: of the contraction; a power of two where they are added up.
    """

    rows: int = 1
    columns: int = 1
    sums: int = 1


def multiply_ordered(a: Scaled, b: Scaled, cuts: Cuts, dtype: DTypeLike) -> Array:
    """The product of two matrices, (a's free axis, b's), with sums as said above."""
    y = sum_in_pairs(_products(a, b, cuts))
    return _joined(scale_sums(y, a, b), cuts).astype(dtype)


def multiply_apart(a: Scaled, b: Scaled, cuts: Cuts, dtype: DTypeLike) -> Array:
    """The products of stretches of the contraction alone, (cuts.sums, a's free axis, b's).

    Their sum is the product but for the order of its sums.
    """
    y = scale_sums(_products(a, b, cuts), a, b)
    return jax.vmap(lambda part: _joined(part, cuts))(y).astype(dtype)


def sum_in_pairs(parts: Array) -> Array:
    """The sum over the first axis, whose length is a power of two, neighbours first.

    The barrier keeps the multiplication that made a part from being fused with the addition, which
    would then round once (FMA) where a sum over devices rounds twice.
    """
    parts = lax.optimization_barrier(parts)
    while parts.shape[0] > 1:
        parts = parts[0::2] + parts[1::2]
    return parts[0]


def _products(a: Scaled, b: Scaled, cuts: Cuts) -> Array:
    """The small products, FP32 and without scales, (sums, rows, columns, height, width).

    Both operands get all three axes: an axis that only one of them had would count as its free
    axis, and make for one wide product instead of several.
    """
    rows, columns = _tiles(a, cuts.rows, cuts.sums), _tiles(b, cuts.columns, cuts.sums)
    grid = (cuts.sums, cuts.rows, cuts.columns)
    if capability() is not None:
        return one_by_one(rows, columns)
    rows = jnp.broadcast_to(rows[:, :, None], (*grid, *rows.shape[2:]))
    columns = jnp.broadcast_to(columns[:, None], (*grid, *columns.shape[2:]))

    def batch(rows: Array, columns: Array) -> Array:
        one, other = (Scaled(Merged(x, Axes(0, 2)), None) for x in (rows, columns))
        return multiply(one, other, jnp.float32, None)

    return jax.vmap(jax.vmap(batch))(rows, columns)


def _tiles(operand: Scaled, free: int, contract: int) -> Array:
    """The operand as (contract, free, rows of a tile, contraction of a tile)."""
    matrix = operand.merged
    assert isinstance(matrix, Merged)  # make_dot_general has seen to it that this is
    assert matrix.batch is None  # a bf16 matrix
    x = matrix.array if matrix.contract == 1 else matrix.array.T
    tiles = x.reshape(free, x.shape[0] // free, contract, x.shape[1] // contract)
    return tiles.transpose(2, 0, 1, 3)


def _joined(y: Array, cuts: Cuts) -> Array:
    """(rows, columns, height, width) as one matrix."""
    _, _, height, width = y.shape
    return jnp.swapaxes(y, 1, 2).reshape(cuts.rows * height, cuts.columns * width)

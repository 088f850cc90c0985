"""A grid of products of one size, one after the other: the same bits however many a device has.

    y[s, r, c] = a[s, r] b[s, c]ᵀ

On a GPU a batch of products is one call of a library, which chooses how to multiply by their number
too, and a compiler may merge products of the same matrix into a wider one. Here each is a call of
its own, with barriers before and after. Under a mesh every device computes those that it has the
matrices of; matrices are never cut.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.experimental.custom_partitioning import custom_partitioning
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array

from nvfp4_jax.axes import of_a_shard
from nvfp4_jax.kernels.scaled_product import sharded_names


@custom_partitioning
def one_by_one(a: Array, b: Array) -> Array:
    """FP32 (sums, rows, columns, height, width) of bf16 matrices.

    Args:
      a: (sums, rows, height, contraction).
      b: (sums, columns, width, contraction).
    """
    return jnp.stack([jnp.stack([_row(x, b[s]) for x in a[s]]) for s in range(a.shape[0])])


def _row(x: Array, others: Array) -> Array:
    return jnp.stack([_product(x, other) for other in others])


def _product(x: Array, y: Array) -> Array:
    x, y = set_apart(x, y)
    sums = lax.dot_general(x, y, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)
    return set_apart(sums)[0]


def set_apart(*arrays: Array) -> tuple[Array, ...]:
    """The arrays, so that what is computed of them is compiled alike wherever it stands.

    Nothing is fused over a barrier. In memory an array has its last axis inmost: of a transposed
    one, products and sums would be other kernels, and it is the neighbours that would decide.
    """
    arrays = lax.optimization_barrier(tuple(map(_by_rows, arrays)))
    return tuple(map(_by_rows, arrays))


def _by_rows(x: Array) -> Array:
    return with_layout_constraint(x, Layout(tuple(range(x.ndim)))) if x.ndim > 1 else x


def _partition(mesh: Any, arguments: Any, result: Any):
    a, b = arguments
    sums, rows = sharded_names(a, 0, mesh), sharded_names(a, 1, mesh)
    taken = (*sums, *rows)
    columns = tuple(name for name in sharded_names(b, 1, mesh) if name not in taken)

    def placed(*names: tuple[str, ...]) -> NamedSharding:
        return NamedSharding(mesh, PartitionSpec(*(entry or None for entry in names)))

    operands = placed(sums, rows), placed(sums, columns)
    return mesh, of_a_shard(one_by_one.fun), placed(sums, rows, columns), operands


one_by_one.def_partition(
    _partition,
    sharding_rule="s r h k, s c w k -> s r c h w",
    need_replication_factors=("h", "k", "w"),
)

"""A bf16 product with its FP32 scales, on GPUs: one kernel where there is one for it.

    out = round_dtype(((a b) s_0) s_1)

On Hopper `hopper_gemm` multiplies the sums with the scales before they leave the registers. Where
it cannot (other GPUs, sizes that are no multiple of 32), where a long sum has too few results to
keep the GPU busy, and where there are no scales, it is XLA's product and, if need be, a pass over
its FP32 result.

Under a mesh every device multiplies its shards. Where the contraction is sharded, partial sums are
added up over the devices, and left scattered if the result is wanted so. They travel in the dtype
of the result: those of weight gradients, which are sums over all tokens, in FP32; those of
activations, which tensor parallelism adds up twice a layer, in bf16 (as in arXiv 1909.08053).
"""

from __future__ import annotations

from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import NamedSharding, PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array

from nvfp4_jax.axes import axis_names, of_a_shard, shard_count
from nvfp4_jax.kernels import hopper_gemm
from nvfp4_jax.kernels.capability import capability

Names = tuple[str, ...]


class Scatter(NamedTuple):
    """Over which mesh axes partial sums stay scattered, along which axis of the result."""

    axis: int
    names: Names


def scaled_product(
    a: Array,
    b: Array,
    contract: tuple[int, int],
    scales: tuple[Array, ...],
    dtype: DTypeLike,
) -> Array:
    """The product of two bf16 matrices over axis contract[0] of a and contract[1] of b.

    Returns:
      (other axis of a, other axis of b) in `dtype`, bfloat16 or float32.
    """
    if not scales:
        numbers = ((contract[:1], contract[1:]), ((), ()))
        return lax.dot_general(a, b, numbers, preferred_element_type=jnp.dtype(dtype))
    call = _split_call(contract, len(scales), jnp.dtype(dtype), capability())
    return call(a, b, *(scale.reshape(1) for scale in scales))


@cache
def _split_call(contract: tuple[int, int], count: int, dtype: Any, found: Any) -> Any:
    """f(a, b, *scales), which maps over examples and splits over devices."""
    local = partial(_local, contract, dtype, found)
    call = custom_partitioning(local)
    a, b = ("k m", "m k")[contract[0]], ("k n", "n k")[contract[1]]
    call.def_partition(
        partial(_partition, contract, dtype, found),
        sharding_rule=f"{a}, {b}{', u' * count} -> m n",
        reduction_factors=("k",),
        need_replication_factors=("u",) if count else (),
    )
    mapped = custom_vmap(call)

    @mapped.def_vmap
    def rule(_: int, in_batched: list[bool], *arguments: Array) -> tuple[Array, bool]:
        axes = tuple(0 if batched else None for batched in in_batched)
        return jax.vmap(partial(_plain, contract, dtype), axes)(*arguments), True

    return mapped


def _local(contract: tuple[int, int], dtype: Any, found: Any, a: Array, b: Array, *scales: Array):
    """On one device: the kernel, if it can and is not the slower way."""
    shapes = (a.shape, b.shape, *contract, dtype)
    if not (hopper_gemm.unsupported(*shapes, found) or hopper_gemm.slower(*shapes)):
        scalars = tuple(scale.reshape(()) for scale in scales)
        return hopper_gemm.scaled_matmul(a, b, *contract, scalars, dtype)
    return _plain(contract, dtype, a, b, *scales)


def _plain(contract: tuple[int, int], dtype: Any, a: Array, b: Array, *scales: Array) -> Array:
    return scaled(_sums(contract, a, b), scales).astype(dtype)


def _sums(contract: tuple[int, int], a: Array, b: Array) -> Array:
    numbers = ((contract[:1], contract[1:]), ((), ()))
    return lax.dot_general(a, b, numbers, preferred_element_type=jnp.float32)


def scaled(y: Array, scales: tuple[Array, ...]) -> Array:
    """The FP32 sums times each scale in turn."""
    for scale in scales:
        y = y * scale.reshape(())
    return y


def _partition(
    contract: tuple[int, int], dtype: Any, found: Any, mesh: Any, arguments: Any, result: Any
):
    a, b, *scales = arguments
    k, m = sharded_names(a, contract[0], mesh), sharded_names(a, 1 - contract[0], mesh)
    n = tuple(name for name in sharded_names(b, 1 - contract[1], mesh) if name not in (*k, *m))
    scatter = scatter_axis(result, k, (m, n), mesh)

    def shard(a: Array, b: Array, *scales: Array) -> Array:
        if not k:
            return _local(contract, dtype, found, a, b, *scales)
        if dtype == jnp.bfloat16:
            return summed(_local(contract, dtype, found, a, b, *scales), k, scatter)
        return scaled(summed(_sums(contract, a, b), k, scatter), scales)

    def placed(axis: int, contracted: Names, free: Names) -> NamedSharding:
        pair = (contracted, free) if axis == 0 else (free, contracted)
        return NamedSharding(mesh, PartitionSpec(*(names or None for names in pair)))

    whole = NamedSharding(mesh, PartitionSpec())
    out = scattered((m, n), scatter)
    result_sharding = NamedSharding(mesh, PartitionSpec(*(names or None for names in out)))
    operands = (placed(contract[0], k, m), placed(contract[1], k, n))
    return mesh, of_a_shard(shard), result_sharding, (*operands, *(whole for _ in scales))


def sharded_names(array: Any, axis: int, mesh: Any, unit: int = 1) -> Names:
    """The mesh axes that an axis is sharded over, if they leave multiples of `unit`."""
    if not isinstance(array.sharding, NamedSharding) or axis >= len(array.sharding.spec):
        return ()
    names = axis_names(array.sharding.spec[axis])
    return names if array.shape[axis] % (shard_count(mesh, names) * unit) == 0 else ()


def scattered(axes: tuple[Names, Names], scatter: Scatter | None) -> tuple[Names, ...]:
    """The mesh axes of the result's two axes."""
    if scatter is None:
        return axes
    return tuple((*n, *scatter.names) if i == scatter.axis else n for i, n in enumerate(axes))


def summed(sums: Array, k: Names, scatter: Scatter | None) -> Array:
    """Partial sums added up over the mesh axes `k`, and left scattered as `scatter` says."""
    if scatter is None:
        return lax.psum(sums, k)
    parts = lax.psum_scatter(sums, scatter.names, scatter_dimension=scatter.axis, tiled=True)
    others = tuple(name for name in k if name not in scatter.names)
    return lax.psum(parts, others) if others else parts


def scatter_axis(result: Any, k: Names, kept: tuple[Names, Names], mesh: Any) -> Scatter | None:
    """How partial sums may stay scattered: over those of k's axes that an axis of the result ends
    with, as the gradient of a weight that is stored in parts does."""
    for axis, names in enumerate(kept):
        wanted = sharded_names(result, axis, mesh)
        ends = wanted[len(names) :]
        if ends and wanted[: len(names)] == names and set(ends) <= set(k):
            return Scatter(axis, ends)
    return None

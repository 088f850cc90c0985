"""The fused kernels under a mesh: each device runs them on its shard, with results as of one.

XLA cannot look into a kernel, so left alone it would gather the whole tensor on every device. We
tell it how to split the call: any axis may be sharded as long as no block straddles a boundary;
where one would, that axis is gathered. Two things are global. The largest magnitude is the
maximum over all devices; and random bits go by an element's place in the whole tensor, so a shard
is told where it begins.

On one device, and inside `shard_map` (where a shard *is* the tensor), the kernel is called as is.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array

from nvfp4_jax.axes import axis_names, of_a_shard, shard_count
from nvfp4_jax.kernels import launch
from nvfp4_jax.kernels import relu_squared as launch_relu_squared
from nvfp4_jax.kernels.launch import Copy

BLOCK = 16
Entries = tuple[tuple[str, ...], ...]  # for each axis, the mesh axes it is sharded over


@cache
def amax_bits(copies: tuple[Copy, ...], round_to_bf16: bool, capability: int) -> Callable:
    """f(x, signs) -> int32 (copies,): `launch.amax_bits` of the whole tensor."""

    def local(x: Array, signs: Array) -> Array:
        return launch.amax_bits(x, copies, signs, round_to_bf16, capability)

    def partition(mesh: Any, arguments: Any, result: Any):
        x, *_ = arguments
        entries = _entries(x.shape, x, mesh, copies)
        names = tuple(name for entry in entries for name in entry)

        def shard(x: Array, signs: Array) -> Array:
            amax = local(x, signs)
            return lax.pmax(amax, names) if names else amax

        whole = NamedSharding(mesh, PartitionSpec())
        return mesh, of_a_shard(shard), whole, (placed(mesh, entries), whole)

    call = custom_partitioning(local)
    call.def_partition(
        partition, sharding_rule="b r c, s -> n", need_replication_factors=("s", "n")
    )
    return call


@cache
def relu_squared(copies: tuple[Copy, ...], gradient: bool, capability: int) -> Callable:
    """f(u, signs), or f(u, dr, signs): `relu_squared.relu_squared` of the whole tensor.

    The result is sharded as u is; the maximum is that over all devices.
    """

    def local(u: Array, *dr_signs: Array) -> tuple[Array, Array]:
        *dr, signs = dr_signs
        return launch_relu_squared.relu_squared(
            u, dr[0] if gradient else None, copies, signs, capability
        )

    def partition(mesh: Any, arguments: Any, result: Any):
        u, *dr, _ = arguments
        entries = _entries(u.shape, u, mesh, copies)
        names = tuple(name for entry in entries for name in entry)

        def shard(*arrays: Array) -> tuple[Array, Array]:
            out, amax = local(*arrays)
            return out, lax.pmax(amax, names) if names else amax

        whole, sharded = NamedSharding(mesh, PartitionSpec()), placed(mesh, entries)
        sources = (sharded, *(sharded for _ in dr), whole)
        return mesh, of_a_shard(shard), (sharded, whole), sources

    tensors = "b r c, b r c" if gradient else "b r c"
    call = custom_partitioning(local)
    call.def_partition(
        partition, sharding_rule=f"{tensors}, s -> b r c, n", need_replication_factors=("s", "n")
    )
    return call


@cache
def operands(copies: tuple[Copy, ...], round_to_bf16: bool, capability: int) -> Callable:
    """f(x, amax, signs, keys) -> a bf16 operand a copy: `launch.operands` of the whole tensor.

    `keys` is uint32 (copies, 2); the row of a copy that rounds to nearest is not read.
    """

    def run(x: Array, *rest: Any) -> tuple[Array, ...]:
        return launch.operands(
            x, copies, *rest, round_to_bf16=round_to_bf16, compute_capability=capability
        )

    return _splitting(run, copies, len(copies), _operands_rule)


@cache
def packed(copy: Copy, round_to_bf16: bool, capability: int) -> Callable:
    """f(x, amax, signs, keys) -> (codes, scales): `launch.packed` of the whole tensor."""

    def run(x: Array, *rest: Any) -> tuple[Array, ...]:
        return launch.packed(
            x, copy, *rest, round_to_bf16=round_to_bf16, compute_capability=capability
        )

    return _splitting(run, (copy,), 2, partial(_packed_rule, copy))


def _splitting(run: Callable, copies: tuple[Copy, ...], results: int, rule: Callable) -> Callable:
    """f(x, amax, signs, keys) as `run(x, amax, signs, keys, start, rows)` of every shard.

    All results are sharded as x is; `start` is the shard's place, `rows` those of the whole.
    """

    def at(entries: Entries, mesh: Any, x: Array, *rest: Array) -> tuple[Array, ...]:
        rows = x.shape[1] * shard_count(mesh, entries[1])
        return run(x, *rest, start_of(x, entries), rows)

    def local(x: Array, amax: Array, signs: Array, keys: Array) -> tuple[Array, ...]:
        return at(((), (), ()), None, x, amax, signs, keys)

    def partition(mesh: Any, arguments: Any, result: Any):
        x, *rest = arguments
        entries = _entries(x.shape, x, mesh, copies)
        whole, sharded = NamedSharding(mesh, PartitionSpec()), placed(mesh, entries)
        shard = partial(at, entries, mesh)
        return mesh, of_a_shard(shard), (sharded,) * results, (sharded, *(whole for _ in rest))

    call = custom_partitioning(local)
    call.def_partition(partition, sharding_rule=rule)
    return call


@cache
def unpacked(copy: Copy, length: int, capability: int) -> Callable:
    """f(codes, scales) -> bf16 operand: `launch.unpacked` of the whole tensor."""

    def at(shards: int, codes: Array, scale: Array) -> Array:
        shape = list(codes.shape)
        shape[1 if copy.axis == "rows" else 2] = length // shards
        return launch.unpacked(codes, scale, tuple(shape), copy, capability)

    def local(codes: Array, scale: Array) -> Array:
        return at(1, codes, scale)

    def partition(mesh: Any, arguments: Any, result: Any):
        entries = _entries(result.shape, arguments[0], mesh, (copy,))
        sharded = placed(mesh, entries)
        shards = shard_count(mesh, entries[1 if copy.axis == "rows" else 2])
        return mesh, of_a_shard(partial(at, shards)), sharded, (sharded, sharded)

    call = custom_partitioning(local)
    call.def_partition(partition, sharding_rule=partial(_unpacked_rule, copy))
    return call


def _operands_rule(mesh: Any, arguments: Any, results: Any):
    """Every copy is laid out as x is; an axis that a rotation pads cannot be sharded."""
    shape = ir_shape(arguments[0])
    padded = {"r": any(ir_shape(r)[1] != shape[1] for r in results)}
    padded["c"] = any(ir_shape(r)[2] != shape[2] for r in results)
    alone = [name for name, is_padded in padded.items() if is_padded]

    def letters(index: int, result: Any) -> str:
        size = ir_shape(result)
        return " ".join(
            name if size[axis] == shape[axis] else f"{name}{index}"
            for axis, name in enumerate("brc")
        )

    named = [letters(index, result) for index, result in enumerate(results)]
    own = [word for words in named for word in words.split() if word not in "brc"]
    rule = f"b r c, n, s, m k -> {', '.join(named)}"
    return rule, _factors(rule, {"n", "s", "m", "k", *alone, *own})


def ir_shape(type: Any) -> tuple[int, ...]:
    """The shape of an array's type in the compiler's own representation."""
    return tuple(type.shape)


def _packed_rule(copy: Copy, mesh: Any, arguments: Any, results: Any):
    """x in blocks of 16 along the axis: 8 bytes of codes and one scale each."""
    x, codes, scale = _blockwise(copy, ir_shape(arguments[0]))
    rule = f"{x}, n, s, m k -> {codes}, {scale}"
    return rule, _factors(rule, {"n", "s", "m", "k"})


def _unpacked_rule(copy: Copy, mesh: Any, arguments: Any, results: Any):
    x, codes, scale = _blockwise(copy, ir_shape(results[0]))
    rule = f"{codes}, {scale} -> {x}"
    return rule, _factors(rule, set())


def _blockwise(copy: Copy, shape: tuple[int, ...]) -> tuple[str, str, str]:
    """Axis names of the tensor, its codes and its scales; j counts blocks, i tiles of rows."""
    if shape[1 if copy.axis == "rows" or copy.square else 2] % BLOCK or (
        copy.square and shape[2] % BLOCK
    ):
        return "b r c", "b r1 c1", "b r2 c2"  # ragged: neither axis is split
    if copy.square:
        codes = "b (i h) (j w)" if copy.axis == "rows" else "b (i t) (j h)"
        return "b (i t) (j w)", codes, "b i j"
    if copy.axis == "rows":
        return "b (j t) c", "b (j h) c", "b j c"
    return "b r (j t)", "b r (j h)", "b r j"


def _factors(rule: str, alone: set[str]) -> dict[str, Any]:
    """Sizes of the factors within a block, and which factors cannot be split, as they appear."""
    words = list(dict.fromkeys(re.findall(r"\w+", rule)))
    sizes = {"t": BLOCK, "w": BLOCK, "h": BLOCK // 2}
    within = {name: size for name, size in sizes.items() if name in words}
    if any(word in words for word in ("r1", "r2")):
        alone = alone | {"r", "c", "r1", "c1", "r2", "c2"}
    kept = tuple(word for word in words if word in alone or word in within)
    return {"need_replication_factors": kept, **within}


def _entries(shape: tuple[int, ...], x: Any, mesh: Any, copies: tuple[Copy, ...]) -> Entries:
    """Which mesh axes each axis may stay sharded over; none where a block would straddle.

    `shape` is the tensor's; `x` is an array sharded as it is, perhaps its packed codes.
    """
    if not isinstance(x.sharding, NamedSharding):
        return ((), (), ())
    spec = tuple(x.sharding.spec) + (None,) * (3 - len(x.sharding.spec))
    kept = []
    for size, entry, unit in zip(shape, spec, _units(copies), strict=True):
        names = axis_names(entry)
        kept.append(names if size % (shard_count(mesh, names) * unit) == 0 else ())
    return tuple(kept)


def _units(copies: tuple[Copy, ...]) -> tuple[int, int, int]:
    """What a shard's length along each axis must be a multiple of."""
    rows = any(copy.square or copy.axis == "rows" for copy in copies)
    columns = any(copy.square or copy.axis == "columns" or copy.bits for copy in copies)
    return 1, BLOCK if rows else 1, BLOCK if columns else 1


def placed(mesh: Any, entries: Entries) -> NamedSharding:
    """The sharding that has these mesh axes for each axis."""
    return NamedSharding(mesh, PartitionSpec(*(names or None for names in entries)))


def start_of(x: Array, entries: Entries) -> Array:
    """uint32 (3,): where a shard begins in the whole tensor, by batch entry, row and column."""
    return jnp.stack(
        [_index(names) * jnp.uint32(size) for names, size in zip(entries, x.shape, strict=True)]
    )


def _index(names: tuple[str, ...]) -> Array:
    return lax.axis_index(names).astype(jnp.uint32) if names else jnp.uint32(0)

"""Native operands and their products under a mesh.

As with the emulation's kernels (`partitioned`, `scaled_product`), XLA is told how to split what it
cannot look into. The hardware reads scales in tiles of 128 rows by 64 contracted elements, so an
operand may stay sharded if its axes and every shard are whole tiles, multiples of 128; else it is
gathered. The product takes contractions in steps of 256: it pads one that is none, and sums over
devices only where every shard is whole steps. What travels between devices, gathered weights above
all, is 4.5 bits an element.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import jax.numpy as jnp
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array

from nvfp4_jax.axes import of_a_shard, shard_count
from nvfp4_jax.kernels import blackwell_gemm, blackwell_quantize
from nvfp4_jax.kernels.blackwell_gemm_tiling import STEP_K
from nvfp4_jax.kernels.partitioned import ir_shape, placed, start_of
from nvfp4_jax.kernels.scaled_product import (
    scaled,
    scatter_axis,
    scattered,
    sharded_names,
    summed,
)
from nvfp4_jax.kernels.tiles import Copy

TILE = 128  # rows and columns of a shard come in multiples of it
_CODES, _SCALES = 2, 64  # elements of a row to a byte of codes, and to a tile of scales
# Sizes of the factors of sharding rules that lie within a shard.
_SIZES = {"t": TILE, "u": TILE, "h": TILE // _CODES, "d": TILE // _SCALES}
_STEP_SIZES = {"h": STEP_K // _CODES, "d": STEP_K // _SCALES}


@cache
def operands(copies: tuple[Copy, ...], round_to_bf16: bool, capability: int) -> Callable:
    """f(x, amax, signs, keys) -> (codes, scales, codes, ...): of one copy, then the next.

    The arguments are those of `partitioned.operands`, for an `x` of one batch entry.
    """

    def at(entries: Any, mesh: Any, x: Array, *rest: Any) -> tuple[Array, ...]:
        amax, signs, keys = rest
        ragged = not any(entries) and _ragged(x.shape)
        pairs = blackwell_quantize.native_operands(
            x,
            copies,
            amax,
            signs,
            keys,
            start_of(x, entries),
            rows=x.shape[1] * shard_count(mesh, entries[1]),
            round_to_bf16=round_to_bf16,
            compute_capability=capability,
            length_multiple=STEP_K if ragged else TILE,
        )
        return tuple(part for pair in pairs for part in pair)

    def local(x: Array, amax: Array, signs: Array, keys: Array) -> tuple[Array, ...]:
        return at(((), (), ()), None, x, amax, signs, keys)

    def partition(mesh: Any, arguments: Any, result: Any):
        x, *rest = arguments
        divides = not _ragged(x.shape)
        entries = ((), *(sharded_names(x, i, mesh, TILE) if divides else () for i in (1, 2)))
        whole = NamedSharding(mesh, PartitionSpec())
        results = []
        for copy in copies:
            axes = entries[1:] if copy.axis == "columns" else entries[:0:-1]
            results += [placed(mesh, axes)] * 2
        sources = (placed(mesh, entries), *(whole for _ in rest))
        return mesh, of_a_shard(partial(at, entries, mesh)), tuple(results), sources

    call = custom_partitioning(local)
    call.def_partition(partition, sharding_rule=partial(_operands_rule, copies))
    return call


def _operands_rule(copies: tuple[Copy, ...], mesh: Any, arguments: Any, results: Any):
    _, rows, columns = shape = ir_shape(arguments[0])
    if _ragged(shape):
        results = ", ".join(f"p{i} q{i}, v{i} w{i} x{i} y{i} z{i}" for i in range(len(copies)))
        return _rule(f"b r c, n, s, m k -> {results}", {})
    made = []
    for i, copy in enumerate(copies):
        lanes = f"x{i} y{i} z{i}"
        if copy.axis == "columns":
            made.append(f"(i t) (j h), i (j d) {lanes}")
        else:
            made.append(f"(j u) (i h), j (i d) {lanes}")
    counts = {"i": rows // TILE, "j": columns // TILE}
    return _rule(f"b (i t) (j u), n, s, m k -> {', '.join(made)}", _SIZES | counts)


def _ragged(shape: tuple[int, ...]) -> bool:
    """Whether an axis is one tile, or not whole tiles: then it cannot be cut."""
    return any(shape[axis] == TILE or shape[axis] % TILE for axis in (1, 2))


def _rule(rule: str, sizes: dict[str, int]):
    """A sharding rule: all but the numbers of tiles and steps, i, j and p, stay whole."""
    words = list(dict.fromkeys(re.findall(r"\w+", rule)))
    inferred = re.findall(r"\w+", re.sub(r"\(.*?\)", "", rule))  # those that are a whole axis
    told = {name: size for name, size in sizes.items() if name in words and name not in inferred}
    whole = tuple(word for word in words if word not in ("i", "j", "p"))
    return rule, {"need_replication_factors": whole, **told}


@cache
def product(sizes: tuple[int, int], count: int, dtype: Any, found: Any) -> Callable:
    """f(a codes, a scales, b codes, b scales, *tensor scales) -> (m, n) = ((a bᵀ) s_0) s_1."""

    def multiply(sizes: tuple[int, int], dtype: Any, *arrays: Array) -> Array:
        a, a_scale, b, b_scale, *factors = arrays
        scalars = tuple(factor.reshape(()) for factor in factors)
        shape = sizes[0], sizes[1], 2 * a.shape[1]
        return blackwell_gemm.block_scaled_matmul(a, a_scale, b, b_scale, shape, scalars, dtype)

    def partition(mesh: Any, arguments: Any, result: Any):
        a, _, b, _, *factors = arguments
        k, m = sharded_names(a, 1, mesh, STEP_K // _CODES), sharded_names(a, 0, mesh, TILE)
        n = sharded_names(b, 0, mesh, TILE)
        n = tuple(name for name in n if name not in (*k, *m))
        scatter = scatter_axis(result, k, (m, n), mesh)
        part = (sizes[0] // shard_count(mesh, m), sizes[1] // shard_count(mesh, n))

        def shard(*arrays: Array) -> Array:
            if not k:
                return multiply(part, dtype, *arrays)
            if dtype == jnp.bfloat16:  # see `scaled_product`
                return summed(multiply(part, dtype, *arrays), k, scatter)
            sums = summed(multiply(part, jnp.float32, *arrays[:4]), k, scatter)
            return scaled(sums, arrays[4:])

        out = scattered((m, n), scatter)
        whole = NamedSharding(mesh, PartitionSpec())
        sources = [placed(mesh, (m, k))] * 2 + [placed(mesh, (n, k))] * 2
        return mesh, of_a_shard(shard), placed(mesh, out), (*sources, *(whole for _ in factors))

    call = custom_partitioning(partial(multiply, sizes, dtype))
    call.def_partition(partition, sharding_rule=partial(_product_rule, sizes, count))
    return call


def _product_rule(sizes: tuple[int, int], count: int, mesh: Any, arguments: Any, results: Any):
    """Axes of one tile or step, which no factor may be, are whole."""
    steps, rest = divmod(ir_shape(arguments[0])[1], _STEP_SIZES["h"])
    steps = 1 if rest else steps
    m, rows = ("m", "mt") if _whole(sizes[0]) else ("(i t)", "i")
    n, columns = ("n", "nt") if _whole(sizes[1]) else ("(j u)", "j")
    k, tiles = ("k", "kt") if steps == 1 else ("(p h)", "(p d)")
    a, b = f"{m} {k}, {rows} {tiles} x0 y0 z0", f"{n} {k}, {columns} {tiles} x1 y1 z1"
    scalars = "".join(f", s{index}" for index in range(count))
    rule, factors = _rule(f"{a}, {b}{scalars} -> {m} {n}", _SIZES | _STEP_SIZES | {"p": steps})
    return rule, factors | ({"reduction_factors": ("p",)} if steps > 1 else {})


def _whole(size: int) -> bool:
    return size == TILE or size % TILE != 0

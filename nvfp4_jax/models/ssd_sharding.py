"""How XLA may split the fused scan over devices: by the batch and by groups of heads.

A kernel is opaque to the partitioner, which would gather its arguments on every device. The rules
below name the axes: two arrays with the same letter are split alike. Only b and g may be; heads
h = g r are whole groups (r heads of one group share B and C).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import NamedSharding, PartitionSpec

# Names of axes, b and h and g; of no name is what is whole everywhere.
_X, _DT, _A, _B, _STATE = "b.h.", "b.h", "h", "b.g.", "bh.."
_DOCUMENTS, _VECTOR, _STATES, _ROWS = "b.", "bh.", "b.h..", "bh"

_FORWARD = (
    (_X, _DT, _A, _B, _B, _A, _DOCUMENTS, _STATE),
    (_X, _STATE, _VECTOR, _VECTOR, _STATES),
)
_BACKWARD = (
    (_X, _A, _B, _B, _A, _DOCUMENTS, _VECTOR, _VECTOR, _STATES, _X, _STATE),
    (_X, _DT, _ROWS, _B, _B, _ROWS, _STATE),
)


def forward(fn: Callable) -> Callable:
    """`fn` with the arguments and results of `ssd_triton`'s forward pass."""
    return _partitioned(fn, *_FORWARD, groups_of=3)


def backward(fn: Callable) -> Callable:
    """The same for its backward pass."""
    return _partitioned(fn, *_BACKWARD, groups_of=2)


def _partitioned(
    fn: Callable, arguments: tuple[str, ...], results: tuple[str, ...], groups_of: int
) -> Callable:
    def partition(mesh: Any, given: Any, _: Any):
        axes = _axes(mesh, given[0], given[groups_of].shape[2])
        placed = tuple(_placed(mesh, axes, letters) for letters in arguments)
        return mesh, fn, tuple(_placed(mesh, axes, letters) for letters in results), placed

    def rule(mesh: Any, given: Any, _: Any):
        heads, groups = given[0].shape[2], given[groups_of].shape[2]
        return _rule(arguments, results, heads // groups)

    call = custom_partitioning(fn)
    call.def_partition(partition, sharding_rule=rule)
    return call


def _axes(mesh: Any, x: Any, groups: int) -> dict[str, Any]:
    """The mesh axes that b and h and g are split over, as x is; none where groups would be cut."""
    if not isinstance(x.sharding, NamedSharding):
        return {}
    spec = (*x.sharding.spec, None, None, None)
    names = spec[2] if isinstance(spec[2], tuple) else (spec[2],) if spec[2] else ()
    shards = 1
    for name in names:
        shards *= mesh.shape[name]
    over_heads = names if names and groups % shards == 0 else None
    return {"b": spec[0], "h": over_heads, "g": over_heads}


def _placed(mesh: Any, axes: dict[str, Any], letters: str) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec(*(axes.get(letter) for letter in letters)))


def _rule(arguments: tuple[str, ...], results: tuple[str, ...], share: int) -> tuple[str, dict]:
    """Shardy's rule: every whole axis gets a name of its own, and must be whole."""
    whole: list[str] = []  # in the order of their appearance, as Shardy wants them

    def name(letter: str) -> str:
        if letter == ".":
            whole.append(f"w{len(whole)}")
            return whole[-1]
        if letter == "h" and "r" not in whole:
            whole.append("r")
        return "(g r)" if letter == "h" else letter

    sides = [", ".join(" ".join(map(name, a)) for a in side) for side in (arguments, results)]
    return " -> ".join(sides), {"need_replication_factors": tuple(whole), "r": share}

"""How XLA may split a kernel over devices, said by naming axes.

A kernel is opaque to the partitioner, which would gather its arguments on every device. So each
array is described by one letter an axis, as in "b.h.": arrays are split alike along axes of one
letter, and `.` is an axis that stays whole. h and g belong together: heads h are whole groups g,
and only whole groups are cut.

What is split is decided by the first argument: the axes that it has letters for stay split as they
are, if every device gets as much as the others. A result that is a sum over what was split (the
gradient of a weight, over rows) is added up over the devices.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jax import lax
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import NamedSharding, PartitionSpec

Letters = tuple[str, ...]


def splitting(
    fn: Callable,
    arguments: Letters,
    results: Letters,
    *,
    groups_of: int | None = None,
    sums: tuple[int, ...] = (),
) -> Callable:
    """`fn`, a function of arrays to a tuple of them, run by each device on its part.

    Args:
      fn: the kernel's call.
      arguments: the letters of each argument.
      results: of each result.
      groups_of: which argument has the groups, on the axis where the first has heads.
      sums: which results are sums over all axes that are split.
    """

    def partition(mesh: Any, given: Any, _: Any):
        axes = _axes(mesh, arguments[0], given[0], _groups(given))
        placed = tuple(_placed(mesh, axes, letters) for letters in arguments)
        names = tuple(name for letter, own in axes.items() if letter != "g" for name in own)

        def shard(*parts: Any) -> tuple[Any, ...]:
            made = enumerate(fn(*parts))
            return tuple(lax.psum(one, names) if i in sums and names else one for i, one in made)

        return mesh, shard, tuple(_placed(mesh, axes, letters) for letters in results), placed

    def _groups(given: Any) -> int:
        return 0 if groups_of is None else given[groups_of].shape[arguments[groups_of].index("g")]

    def rule(mesh: Any, given: Any, _: Any):
        groups = _groups(given)
        heads = given[0].shape[arguments[0].index("h")] if groups else 0
        return _rule(arguments, results, groups, heads // max(groups, 1))

    call = custom_partitioning(fn)
    call.def_partition(partition, sharding_rule=rule)
    return call


def _axes(mesh: Any, letters: str, first: Any, groups: int) -> dict[str, tuple[str, ...]]:
    """The mesh axes that each letter is split over."""
    if not isinstance(first.sharding, NamedSharding):
        return {}
    spec = (*first.sharding.spec, *(None,) * len(letters))
    axes = {}
    for letter, size, entry in zip(letters, first.shape, spec, strict=False):
        names = entry if isinstance(entry, tuple) else (entry,) if entry else ()
        shards = 1
        for name in names:
            shards *= mesh.shape[name]
        parts = groups if letter == "h" else size
        axes[letter] = names if letter != "." and parts % shards == 0 else ()
    return axes | ({"g": axes["h"]} if "h" in axes else {})


def _placed(mesh: Any, axes: dict[str, tuple[str, ...]], letters: str) -> NamedSharding:
    entries = [axes.get(letter) if letter != "." else None for letter in letters]
    return NamedSharding(mesh, PartitionSpec(*(entry or None for entry in entries)))


def _rule(arguments: Letters, results: Letters, groups: int, share: int) -> tuple[str, dict]:
    """Shardy's rule: every whole axis gets a name of its own, and must be whole.

    A factor of one element is not allowed beside another: one group is whole, and where every head
    is a group of its own heads are groups.
    """
    whole: list[str] = []  # in the order of their appearance, as Shardy wants them

    def name(letter: str) -> str:
        if letter == "." or (letter in "gh" and groups == 1):
            whole.append(f"w{len(whole)}")
            return whole[-1]
        if letter != "h" or share == 1:
            return "g" if letter == "h" else letter
        if "r" not in whole:
            whole.append("r")
        return "(g r)"

    sides = [", ".join(" ".join(map(name, a)) for a in side) for side in (arguments, results)]
    sizes = {"r": share} if "r" in whole else {}
    return " -> ".join(sides), {"need_replication_factors": tuple(whole), **sizes}

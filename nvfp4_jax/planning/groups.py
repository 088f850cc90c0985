"""Which devices meet in a collective, and over which axes of the mesh they lie.

XLA writes the groups of a collective in three ways; device numbers are places in the mesh:

    {{0,1},{2,3}}                                     one by one; {} is all in one group
    [4,2]<=[2,2,2]T(1,0,2)                            0 .. 7 as (2, 2, 2), transposed, as (4, 2)
    mesh['a'=2,'b'=4] {'b'}                           along axes of a mesh
    mesh['a'=2,'b'=4] {'b':(2)2}                      along part of one: of 4 as (2, 2), the second

The axes of a collective follow from the coordinates that differ within a group.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import numpy as np

_IOTA = re.compile(r"\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_MESH = re.compile(r"mesh\[([^\]]*)\]\s*\{([^}]*)\}")
_SIZES = re.compile(r"'([^']+)'=(\d+)")
_PART = re.compile(r"'([^']+)'(?::\((\d+)\)(\d+))?")
_LISTED = re.compile(r"\{([\d,\s]*)\}")


def parse_groups(text: str, devices: int) -> np.ndarray:
    """(groups, devices of a group) of what stands behind `replica_groups=`.

    Raises:
      ValueError: none of the three ways.
    """
    if found := _IOTA.match(text):
        shape, sizes, order = (_numbers(part) for part in found.groups())
        array = np.arange(math.prod(sizes)).reshape(sizes)
        return array.transpose(order or range(len(sizes))).reshape(shape)
    if found := _MESH.match(text):
        return _along(_SIZES.findall(found[1]), _PART.findall(found[2]))
    if text.startswith("{{"):
        listed = text[1 : text.index("}}") + 1]
        return np.array([_numbers(group) for group in _LISTED.findall(listed)])
    if text.startswith("{}"):
        return np.arange(devices)[None]
    raise ValueError(f"replica_groups={text[:60]}: not a form of groups that is known here")


def parse_pairs(text: str) -> np.ndarray:
    """(pairs, 2) of what stands behind `source_target_pairs=`."""
    return np.array([_numbers(pair) for pair in _LISTED.findall(text[1 : text.index("}}") + 1])])


def axes_of(groups: np.ndarray, sizes: Mapping[str, int]) -> tuple[str, ...]:
    """The axes of a mesh of these sizes along which the members of a group differ."""
    coordinates = np.unravel_index(groups, tuple(sizes.values()))
    return tuple(
        name
        for name, along in zip(sizes, coordinates, strict=True)
        if np.any(along != along[:, :1])
    )


def together(groups: np.ndarray, domain: int) -> int:
    """How many members of a group are in one domain of `domain` neighbours, at the fewest."""
    return min(int(np.unique(group // domain, return_counts=True)[1].min()) for group in groups)


def _along(sizes: list[tuple[str, str]], parts: list[tuple[str, str, str]]) -> np.ndarray:
    wanted: dict[str, list[tuple[int, int]]] = {}
    for name, before, size in parts:
        whole = int(dict(sizes)[name])
        wanted.setdefault(name, []).append((int(before or 1), int(size or whole)))
    dims: list[int] = []
    inside: list[int] = []
    for name, text in sizes:
        done = 1
        for before, size in sorted(wanted.get(name, [])):
            dims += [before // done, size]
            inside.append(len(dims) - 1)
            done = before * size
        dims.append(int(text) // done)
    outside = [axis for axis in range(len(dims)) if axis not in inside]
    members = math.prod(dims[axis] for axis in inside)
    array = np.arange(math.prod(dims)).reshape(dims)
    return array.transpose(*outside, *inside).reshape(-1, members)


def _numbers(text: str | None) -> tuple[int, ...]:
    return tuple(int(n) for n in (text or "").split(",") if n.strip())

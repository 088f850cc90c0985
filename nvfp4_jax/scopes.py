"""Names by which a compiled program tells which layer, GEMM and operand an instruction is of.

XLA carries the name stack of `jax.named_scope` with every instruction, through differentiation,
loops, rematerialization and fusion, into the metadata of the program that runs. Under these names
profiles show the layers too.

    linear[blocks_3/mlp/up:dgrad]               the product
    linear[blocks_3/mlp/up:dgrad]/quantize[grad]     the rounding of one of its operands

In a loop over repeats one traced block stands for several: blocks_4:58:9 is every ninth block
from 4 on, below 58, as a slice of Python has it.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax

UNNAMED = "?"  # a product that was given no layer's name
_LINEAR = re.compile(r"linear\[([^\]]*):(fprop|dgrad|wgrad)\]")
_QUANTIZE = re.compile(r"quantize\[(\w+)\]")
_BLOCKS = re.compile(r"blocks_(\d+):(\d+):(\d+)")


class Place(NamedTuple):
    """Where an instruction belongs; `operand` is None outside the rounding of one."""

    layer: str
    gemm: str
    operand: str | None


def gemm_scope(layer: str | None, gemm: str) -> contextlib.AbstractContextManager[Any]:
    """What is traced inside belongs to a GEMM of a layer."""
    return jax.named_scope(f"linear[{layer or UNNAMED}:{gemm}]")


def quantize_scope(operand: str) -> contextlib.AbstractContextManager[Any]:
    """What is traced inside rounds an operand of the GEMM in whose scope it is."""
    return jax.named_scope(f"quantize[{operand}]")


def place_of(op_name: str) -> Place | None:
    """The innermost place that the name of an instruction tells; None if it tells none."""
    *_, found = (None, *_LINEAR.finditer(op_name))
    if found is None:
        return None
    operand = _QUANTIZE.search(op_name, found.end())
    return Place(found[1], found[2], operand and operand[1])


def joined(paths: Sequence[str]) -> str:
    """One name for the layers that a loop runs as one: `blocks_4:58:9/mlp/up`.

    Raises:
      ValueError: the paths do not differ in the number of their block alone, in even steps.
    """
    if len(paths) == 1:
        return paths[0]
    numbers = [int(path.partition("/")[0].removeprefix("blocks_")) for path in paths]
    step = numbers[1] - numbers[0]
    name = f"blocks_{numbers[0]}:{numbers[-1] + step}:{step}/{paths[0].partition('/')[2]}"
    if expanded(name) != tuple(paths):
        raise ValueError(f"{', '.join(paths)}: not one layer of blocks in even steps")
    return name


def expanded(name: str) -> tuple[str, ...]:
    """The layers that a name stands for: `joined` undone."""
    found = _BLOCKS.match(name)
    if found is None:
        return (name,)
    rest = name[found.end() :]
    return tuple(f"blocks_{i}{rest}" for i in range(*map(int, found.groups())))

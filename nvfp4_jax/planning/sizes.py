"""Bytes: of arrays, and of what an instruction of a compiled program moves to and from memory.

A kernel reads its operands and writes its results, once each: what it keeps in registers, shared
memory and caches is its own affair. Two things are not as their types say:

- a fusion that slices an operand reads the slice: a loop takes its part of what is stacked
- one that updates a slice of an operand writes the slice, in place
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

from nvfp4_jax.compiled.hlo import ArrayType, Instruction, Program

_DIGITS = re.compile(r"\d+")
_NAMES = {"pred": 8, "token": 0, "tuple": 0}
_SLICING = ("dynamic-slice", "slice", "gather")
_MOVES = ("bitcast", "copy", "convert")
FREE = frozenset(
    {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "opt-barrier"}
    | {"partition-id", "replica-id", "while", "call", "conditional", "domain"}
)


def bytes_of(array: ArrayType) -> int:
    """Of an array; 4-bit numbers are packed."""
    return math.ceil(bits_of(array.dtype) * math.prod(array.shape) / 8)


def bits_of(dtype: str) -> int:
    """Of one number: `bf16` has 16, `f8e4m3fn` 8."""
    if dtype in _NAMES:
        return _NAMES[dtype]
    found = _DIGITS.search(dtype)
    return int(found[0]) if found else 0


def moved_bytes(program: Program, i: Instruction) -> int:
    """Bytes that an instruction reads and writes in the GPU's memory; see the module."""
    if i.opcode in FREE or i.opcode.endswith("-done"):
        return 0
    if i.opcode in ("fusion", "fusion-start") and i.called:
        return sum(_read(program, i, n) for n in range(len(i.operands))) + _written(program, i)
    operands = [_bytes(program.operand(i, n)) for n in range(len(i.operands))]
    if i.opcode in _SLICING:
        return 2 * _bytes(i)
    if i.opcode == "dynamic-update-slice":
        return 2 * operands[1]
    if i.target.startswith("__cublas$"):  # the second result is its workspace
        return sum(operands) + bytes_of(i.arrays[0])
    return sum(operands) + _bytes(i)


def _bytes(i: Instruction) -> int:
    return sum(map(bytes_of, i.arrays))


def _read(program: Program, fusion: Instruction, number: int) -> int:
    """Of one operand of a fusion."""
    whole = _bytes(program.operand(fusion, number))
    computation = fusion.called[0]
    name = program.parameters.get(computation, {}).get(number)
    if name is None:
        return whole
    uses = list(_uses(program, computation, name))
    if not uses or not all(_is_part(i, name) for i in uses):
        return whole
    return min(whole, sum(_bytes(i) for i in uses if i.opcode in _SLICING))


def _uses(program: Program, computation: str, name: str) -> Iterator[Instruction]:
    for user in program.users[computation, name]:
        yield program.instructions[computation, user]


def _is_part(i: Instruction, name: str) -> bool:
    """Whether an instruction takes a part of `name`, or updates one in place."""
    return i.operands[0] == name and i.opcode in (*_SLICING, "dynamic-update-slice")


def _written(program: Program, fusion: Instruction) -> int:
    """Of the results of a fusion."""
    computation = fusion.called[0]
    root = program.instructions[computation, program.roots[computation]]
    parts = [root]
    if root.opcode == "tuple":
        parts = [program.operand(root, n) for n in range(len(root.operands))]
    return sum(_part_written(program, part) for part in parts)


def _part_written(program: Program, i: Instruction) -> int:
    while i.opcode in _MOVES and i.operands:
        i = program.operand(i, 0)
    return _bytes(program.operand(i, 1)) if i.opcode == "dynamic-update-slice" else _bytes(i)

"""Where a value comes from: one step back, across fusions, loops and tuples.

A value is an instruction's result, or one element of it where that is a tuple. Instructions that
only hand values on (a tuple, a fusion, a loop, a parameter) are looked through: `origins` gives
the values that one is, and an empty list where the instruction itself computes it.
"""

from __future__ import annotations

from typing import NamedTuple

from nvfp4_jax.compiled.hlo import Instruction, Program


class Value(NamedTuple):
    """Result of an instruction; `path` leads into nested tuples."""

    computation: str
    name: str
    path: tuple[int, ...] = ()


def origins(program: Program, value: Value) -> list[Value]:
    """The values that `value` is, or may be; none where it is computed here, or is an input."""
    i = program.instructions[value.computation, value.name]
    index = value.path
    if i.opcode == "get-tuple-element":
        number = int(i.attributes.partition("index=")[2].split(",")[0])
        return [Value(i.computation, i.operands[0], (number, *index))]
    if i.opcode == "tuple" and index:
        return [Value(i.computation, i.operands[index[0]], index[1:])]
    if i.opcode in ("tuple", "opt-barrier"):
        return [Value(i.computation, name, index) for name in i.operands]
    if i.opcode.endswith("-done"):  # the end of what its -start began, in the background
        start = program.operand(i, 0)
        begun = [Value(name, program.roots[name], index) for name in start.called]
        # of a collective of several arrays, the one asked for
        number, rest = (index[0], index[1:]) if index and len(start.operands) > 1 else (0, index)
        return begun or [Value(i.computation, start.operands[number], rest)]
    if i.opcode == "while":
        body = Value(i.called[1], program.roots[i.called[1]], index)
        return [Value(i.computation, i.operands[0], index), body]
    if i.opcode in ("fusion", "call", "conditional"):
        return [Value(name, program.roots[name], index) for name in i.called]
    if i.opcode == "parameter":
        number = int(i.literal)
        callers = program.callers.get(i.computation, [])
        return [v for caller in callers for v in _passed(program, caller, i, number, index)]
    return []


def _passed(
    program: Program, caller: Instruction, parameter: Instruction, number: int, index: tuple
) -> list[Value]:
    """What a caller hands to a parameter of the computation it runs."""
    here = caller.computation
    if caller.opcode == "while":
        body = caller.called[1]
        return [Value(here, caller.operands[0], index), Value(body, program.roots[body], index)]
    if caller.opcode == "conditional":
        branches = [n for n, name in enumerate(caller.called) if name == parameter.computation]
        return [Value(here, caller.operands[n + 1], index) for n in branches]
    if number < len(caller.operands):
        return [Value(here, caller.operands[number], index)]
    return []

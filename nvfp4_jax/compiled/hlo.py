"""The optimized program of an executable, read from its text.

    text = compiled.as_text()
    program = parse(text)

XLA prints a program as computations, each a list of instructions in order; fusions, loops and
calls name the computations they run. Only what a reader of products needs is kept: who uses whom,
under which name (the scopes of `nvfp4_jax.scopes` are in it), and what a custom call carries.

    %add.3 = f32[16,8]{1,0} add(%x, %y), metadata={op_name="jit(f)/linear[head:fprop]/add" ...}
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
_OP_NAME = re.compile(r'op_name="([^"]*)"')
_CALLED = re.compile(r"(?:calls|to_apply|body|condition|\w+_computations?)=\{?((?:%[\w.\-]+,? ?)+)")
_NAME = re.compile(r"%([\w.\-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\]")
_TARGET = re.compile(r'custom_call_target="([^"]+)"')


@dataclass(frozen=True)
class Instruction:
    """One instruction.

    Attributes:
      name, computation: together they are unique.
      type: as printed, layout included; a tuple's in parentheses.
      opcode: `dot`, `fusion`, `custom-call`, ...
      operands: names, of the same computation.
      called: names of computations, in the order printed.
      op_name: where it comes from, in the words of the traced program; may be empty.
      literal: what stands in the parentheses of a constant, a parameter's number.
      attributes: the rest of the line, up to metadata.
      config: backend_config, with a custom call's kernel.
    """

    name: str
    computation: str
    type: str
    opcode: str
    operands: tuple[str, ...]
    called: tuple[str, ...]
    op_name: str
    literal: str
    attributes: str
    config: str

    @property
    def target(self) -> str:
        """Of a custom call."""
        found = _TARGET.search(self.attributes) if self.opcode == "custom-call" else None
        return found[1] if found else ""

    @property
    def trips(self) -> int | None:
        """How often a while loop runs, where the compiler knows."""
        found = _TRIPS.search(self.config)
        return int(found[1]) if found else None

    @property
    def arrays(self) -> tuple[ArrayType, ...]:
        """The arrays of its type: one, or those of a tuple."""
        return tuple(ArrayType(t, _sizes(s)) for t, s in _ARRAY.findall(self.type))


class ArrayType(NamedTuple):
    """`bf16`, (512, 256)."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Program:
    """Instructions by computation and name.

    Attributes:
      instructions: (computation, name) -> instruction, in the order of the text.
      roots: computation -> name of its result.
      entry: the computation that runs first.
    """

    instructions: dict[tuple[str, str], Instruction]
    roots: dict[str, str]
    entry: str

    @cached_property
    def parameters(self) -> dict[str, dict[int, str]]:
        """computation -> number -> name of its parameters."""
        found: dict[str, dict[int, str]] = {}
        for i in self.instructions.values():
            if i.opcode == "parameter":
                found.setdefault(i.computation, {})[int(i.literal)] = i.name
        return found

    @cached_property
    def callers(self) -> dict[str, list[Instruction]]:
        """computation -> the instructions that run it."""
        found: dict[str, list[Instruction]] = {}
        for i in self.instructions.values():
            for name in i.called:
                found.setdefault(name, []).append(i)
        return found

    @cached_property
    def users(self) -> dict[tuple[str, str], list[str]]:
        """(computation, name) -> names of the instructions there that have it as an operand."""
        found: dict[tuple[str, str], list[str]] = {key: [] for key in self.instructions}
        for i in self.instructions.values():
            for name in dict.fromkeys(i.operands):
                found[i.computation, name].append(i.name)
        return found

    @cached_property
    def runs(self) -> dict[str, int]:
        """computation -> how often it runs in one run of the program; loops multiply."""
        counts: dict[str, int] = {self.entry: 1}

        def count(computation: str) -> int:
            if computation not in counts:
                counts[computation] = 0  # a computation that calls itself does not occur
                callers = self.callers.get(computation, [])
                counts[computation] = sum(count(i.computation) * (i.trips or 1) for i in callers)
            return counts[computation]

        for computation in self.roots:
            count(computation)
        return counts

    def operand(self, instruction: Instruction, number: int) -> Instruction:
        """The instruction that makes an operand."""
        return self.instructions[instruction.computation, instruction.operands[number]]

    def loops_of_unknown_length(self) -> list[str]:
        """Names of while loops that `runs` counts once, since the compiler does not know more."""
        loops = (i for i in self.instructions.values() if i.opcode == "while")
        return [i.name for i in loops if i.trips is None]


def parse(text: str) -> Program:
    """The program that a module's text describes.

    Raises:
      ValueError: no entry computation: the text is not that of an optimized module.
    """
    instructions: dict[tuple[str, str], Instruction] = {}
    roots: dict[str, str] = {}
    entry = computation = ""
    for line in text.split("\n"):
        if line.startswith("  ") and computation and " = " in line:
            parsed = _instruction(line, computation)
            instructions[computation, parsed.name] = parsed
            if line.startswith("  ROOT "):
                roots[computation] = parsed.name
        elif line.endswith("{") and (header := _HEADER.match(line)):
            computation = header[2]
            entry = computation if header[1] else entry
    if not entry:
        raise ValueError("no ENTRY computation: this is not the text of an optimized HLO module")
    return Program(instructions, roots, entry)


def _instruction(line: str, computation: str) -> Instruction:
    name, _, rest = line.strip().removeprefix("ROOT ").partition(" = ")
    config_at = rest.find("backend_config=")
    config = rest[config_at + len("backend_config=") :] if config_at >= 0 else ""
    rest = rest[:config_at] if config_at >= 0 else rest
    type_end = _closing(rest, 0) if rest.startswith("(") else rest.index(" ")
    opening = rest.index("(", type_end)
    closing = _closing(rest, opening)
    inside, attributes = rest[opening + 1 : closing - 1], rest[closing:]
    op_name = _OP_NAME.search(attributes)
    called = _CALLED.findall(attributes)
    opcode = rest[type_end:opening].strip()
    is_leaf = opcode in ("constant", "parameter")
    return Instruction(
        name=name.lstrip("%"),
        computation=computation,
        type=rest[:type_end],
        opcode=opcode,
        operands=() if is_leaf else tuple(_NAME.findall(inside)),
        called=tuple(_NAME.findall(" ".join(called))),
        op_name=op_name[1] if op_name else "",
        literal=inside if is_leaf else "",
        attributes=attributes.partition("metadata=")[0],
        config=config,
    )


def _closing(text: str, opening: int) -> int:
    """One past the parenthesis that closes the one at `opening`."""
    depth, at = 0, opening
    while True:
        nearest_open, nearest_close = text.find("(", at), text.find(")", at)
        if 0 <= nearest_open < nearest_close:
            depth, at = depth + 1, nearest_open + 1
        else:
            depth, at = depth - 1, nearest_close + 1
        if depth == 0:
            return at


def _sizes(text: str) -> tuple[int, ...]:
    return tuple(int(size) for size in text.split(",") if size)

"""What a Triton kernel writes: which roundings stand between its inputs and each of its outputs.

Triton's IR is a list of functions in single assignment form that call each other. It is run here
on *marks* in place of numbers: a value's marks are those of its operands, and a few operations add
or replace some. What is stored to an argument carries the marks of everything it was made of.

| operation                                    | mark                                      |
|----------------------------------------------|-------------------------------------------|
| (a + C) - C, C from a binade of E2M1 or E4M3 | rounded to that format, to nearest        |
| the same in one piece of assembly (`fma.rm`) | rounded to it, stochastically             |
| `cvt.rn...e2m1x2`, `cvt.rs...e2m1x4`, ...    | rounded in hardware                       |
| a product with Philox's first multiplier     | random                                    |
| a load through an argument                   | read from it                              |

Marks say what a value depends on, which is less than that nothing went round the rounding.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal, NamedTuple

from nvfp4_jax.compiled.marks import BINADES, MANTISSA_BITS, RANDOM, Mark, is_rounding

_FUNCTION = re.compile(r'^\s*tt\.func \w+ @("[^"]*"|[\w.$]+)\(')
_RESULT = re.compile(r"^\s*((?:%[\w.\-]+(?::\d+)?(?:, )?)+) = (.*)$")
_NAMED = re.compile(r"%([\w.\-]+)(?::(\d+))?")
_VALUE = re.compile(r"%([\w.\-]+(?:#\d+)?)")
_CALLEE = re.compile(r'tt\.call @("[^"]*"|[\w.$]+)\(')
_CONSTANT = re.compile(r"arith\.constant (?:dense<)?(-?[\d.]+(?:E[+-]?\d+)?)")
_CAST = re.compile(r"cvt\.(rn|rs|rz)\.\S*?(e2m1|e4m3|e5m2)x")
_ARGUMENT = re.compile(r"%([\w.\-]+): ")
_PHILOX = {"3528531795", "-766435501"}
# The smallest binade, or the C that is made of it, or what a random number is multiplied with, as
# the bits of a float32.
_SMALLEST = {
    str((127 + low + shift) << 23): name
    for low, name in BINADES.items()
    for shift in (0, 23 - MANTISSA_BITS[name], 124)
}

Marks = frozenset[Mark | str]  # a str: the name of an argument read, or what a constant is
NONE: Marks = frozenset()


class Written(NamedTuple):
    """What a kernel stores through one of its arguments: made how, and read from which others."""

    argument: int
    marks: frozenset[Mark]
    random: bool
    reads: frozenset[int]


@dataclass
class _Function:
    name: str
    arguments: list[str]
    lines: list[str] = field(default_factory=list)


@lru_cache(maxsize=1024)
def writes(ir: str) -> tuple[Written, ...]:
    """What a kernel writes, by the number of the argument it writes through."""
    functions = _functions(ir)
    kernel = next(f for f in functions.values() if f.name.startswith("public "))
    stores: list[tuple[Marks, Marks]] = []
    own: dict[str, Marks] = {name: frozenset({f"@{n}"}) for n, name in enumerate(kernel.arguments)}
    _run(kernel, own, functions, stores)
    merged: dict[int, Marks] = {}
    for pointer, stored in stores:
        for target in _arguments(pointer):
            merged[target] = merged.get(target, NONE) | stored
    return tuple(
        Written(
            target,
            frozenset(m for m in marks if isinstance(m, Mark)),
            RANDOM in marks,
            _arguments(marks),
        )
        for target, marks in sorted(merged.items())
    )


def multiplies(ir: str) -> bool:
    """Whether a kernel has a matrix product in it."""
    return "tt.dot" in ir


def _arguments(marks: Marks) -> frozenset[int]:
    return frozenset(int(m[1:]) for m in marks if isinstance(m, str) and m.startswith("@"))


def _functions(ir: str) -> dict[str, _Function]:
    functions: dict[str, _Function] = {}
    current: _Function | None = None
    for line in ir.splitlines():
        if header := _FUNCTION.match(line):
            public = "public " if "tt.func public" in line else ""
            name = header[1].strip('"')
            current = _Function(public + name, _ARGUMENT.findall(line))
            functions[name] = current
        elif current is not None:
            current.lines.append(line)
    return functions


def _run(
    function: _Function,
    values: dict[str, Marks],
    functions: dict[str, _Function],
    stores: list[tuple[Marks, Marks]],
) -> list[Marks]:
    """Run a function on marks; `values` are those of its arguments, by name."""
    operations: dict[str, str] = {}  # name -> the text that made it
    open_results: list[list[str]] = []  # of the regions that are open, innermost last
    returned: list[Marks] = []
    for line in function.lines:
        text = line.partition(" loc(")[0]
        result = _RESULT.match(text)
        body = result[2] if result else text.strip()
        names = _names(result)
        operands = [values.get(v, NONE) for v in _VALUE.findall(body)]
        everything = frozenset().union(*operands)
        if body.startswith("tt.return") and not returned:
            returned = operands
        elif body.startswith("scf.yield"):
            for name, marks in zip(
                open_results[-1] if open_results else [], operands, strict=False
            ):
                values[name] = values.get(name, NONE) | marks
        elif callee := _CALLEE.search(body):
            called = functions[callee[1].strip('"')]
            arguments = dict(zip(called.arguments, operands, strict=False))
            outcome = _run(called, arguments, functions, stores)
            values |= dict(zip(names, outcome, strict=False))
        elif "tt.store" in body or "descriptor_store" in body:
            pointer, *rest = operands
            stores.append((pointer, frozenset().union(*rest[: 1 if "tt.store" in body else None])))
        else:
            marks = _marks_of(body, everything, operands, values, operations)
            for name in names:
                values[name] = marks
        if result:
            operations |= dict.fromkeys(names, body)
        if text.rstrip().endswith("{") and body.startswith(("scf.", '"tt.')):
            open_results.append(names)
            for name, start in re.findall(r"%([\w.\-]+) = %([\w.\-#]+)", body):
                values[name] = values.get(start, NONE)  # iter_args of a loop
        elif text.strip().startswith("}") and "else" not in text and open_results:
            open_results.pop()
    return returned


def _names(result: re.Match[str] | None) -> list[str]:
    """`%a, %b = ...` names two results, `%0:2 = ...` too: 0#0 and 0#1."""
    if result is None:
        return []
    named = _NAMED.findall(result[1])
    return [f"{n}#{k}" for n, count in named if count for k in range(int(count))] or [
        name for name, _ in named
    ]


def _marks_of(
    body: str,
    everything: Marks,
    operands: list[Marks],
    values: dict[str, Marks],
    operations: dict[str, str],
) -> Marks:
    """The marks of a simple operation's result."""
    if constant := _CONSTANT.match(body):
        number = constant[1]
        if number in _PHILOX:
            return frozenset({RANDOM})
        return frozenset({f"binade {_SMALLEST[number]}"}) if number in _SMALLEST else NONE
    if "inline_asm" in body:
        return _of_assembly(body, everything, operands)
    if body.startswith("arith.subf"):
        return _of_difference(body, everything, values, operations)
    return everything


def _of_assembly(body: str, everything: Marks, operands: list[Marks]) -> Marks:
    """Of `add_and_floor` the last operand is made of binades, as C is elsewhere."""
    if "fma.rm" in body:
        return _rounded(everything, operands[-1], "stochastic")
    casts = _CAST.findall(body)
    modes = {"rs": "stochastic"}
    return everything | {Mark(name, modes.get(mode, "nearest")) for mode, name in casts}


def _of_difference(
    body: str, everything: Marks, values: dict[str, Marks], operations: dict[str, str]
) -> Marks:
    """(a + C) - C is a rounding to the format whose binades C is made of."""
    total, magic = _VALUE.findall(body)[:2]
    made = operations.get(total, "")
    if magic not in _VALUE.findall(made):
        return everything
    return _rounded(everything, values.get(magic, NONE), "nearest")


def _rounded(everything: Marks, magic: Marks, how: Literal["nearest", "stochastic"]) -> Marks:
    """What was rounded by means of `magic`, if that is made of a format's binades."""
    binades = [str(m) for m in magic if str(m).startswith("binade ")]
    if not binades:
        return everything
    rest = {m for m in everything if is_rounding(m) or m == RANDOM or str(m).startswith("@")}
    return frozenset({Mark(binades[0].split()[1], how), *rest})

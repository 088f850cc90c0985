"""Was an operand really rounded? Read backwards from the product, to where the tensor came in.

From an operand of a product every path is followed towards the inputs of the program. A path ends
well where it meets a rounding, and it ends badly where it leaves the arithmetic of the quantizer
(`scopes.quantize_scope`) without having met one: then numbers reach the product as they were. What
is left of a number beside its rounding carries none of its digits: the sign, the exponent that
picks the gap, the outcome of a comparison.

| instruction                              | what it is                                        |
|------------------------------------------|---------------------------------------------------|
| (a + C) - C, C of the gaps of a format   | rounded to that format, to nearest                |
| floor(a / gap + u)                       | rounded to it, stochastically; u random: Philox   |
| x & 0x80000000, x >> 23, comparisons     | sign, exponent, a bit                             |
| a Triton kernel                          | as its IR says (`triton_ir`), output by output    |
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from nvfp4_jax.compiled.flow import Value, origins
from nvfp4_jax.compiled.hlo import Instruction, Program
from nvfp4_jax.compiled.kernels import triton_kernel
from nvfp4_jax.compiled.marks import BINADES, Mark
from nvfp4_jax.compiled.triton_ir import writes
from nvfp4_jax.scopes import place_of

_PHILOX = "3528531795"  # 0xD2511F53, its first multiplier
_SIGN = ("2147483648", "-2147483648")
_BIASED = {str(127 + low): name for low, name in BINADES.items()}
_LOOKED_THROUGH = {
    "all-gather", "all-to-all", "bitcast", "bitcast-convert", "broadcast", "collective-permute",
    "concatenate", "convert", "copy", "pad", "reshape", "slice", "transpose",
}  # fmt: skip
_PLACED = {"dynamic-slice": 1, "gather": 1, "dynamic-update-slice": 2}  # operands before indices
_NO_NUMBERS = {"constant", "iota", "partition-id", "replica-id", "compare", "is-finite"}


@dataclass
class Reading:
    """What was found between an operand and the tensor it was made of.

    Attributes:
      marks: the roundings.
      random: whether the stochastic ones draw from Philox.
      unrounded: where numbers came in without any; empty for an operand that is rounded.
      kernels: names of the kernels that round; none where XLA's own code does.
    """

    marks: set[Mark] = field(default_factory=set)
    random: bool = False
    unrounded: list[str] = field(default_factory=list)
    kernels: set[str] = field(default_factory=set)


def read(program: Program, *starts: Value) -> Reading:
    """The reading of an operand, which may be of several arrays: codes and scales."""
    reading, stack, seen = Reading(), list(starts), set()
    while stack:
        value = stack.pop()
        if value in seen:
            continue
        seen.add(value)
        stack += origins(program, value) or _before(program, value, reading)
    return reading


def _before(program: Program, value: Value, reading: Reading) -> list[Value]:
    """What an instruction that computes was given, as far as it must be followed."""
    i = program.instructions[value.computation, value.name]
    if i.opcode in _NO_NUMBERS or _is_sign_or_exponent(program, i):
        return []
    if i.opcode == "custom-call":
        return _before_kernel(i, value, reading)
    if mark := _rounding(program, i):
        reading.marks.add(mark)
        reading.random |= mark.mode == "stochastic" and _is_random(program, i)
        return []
    if i.opcode in _PLACED:
        return _operands(i)[: _PLACED[i.opcode]]
    if i.opcode in _LOOKED_THROUGH or (_in_quantizer(i) and i.opcode != "dot" and i.operands):
        return _operands(i)
    reading.unrounded.append(_told(i))
    return []


def _before_kernel(call: Instruction, value: Value, reading: Reading) -> list[Value]:
    kernel = triton_kernel(call)
    if kernel is None:
        reading.unrounded.append(_told(call))
        return []
    output = len(call.operands) + (value.path[0] if value.path else 0)
    written = next((w for w in writes(kernel.ir) if w.argument == output), None)
    if written is None:
        reading.unrounded.append(f"kernel {kernel.name}, whose output {output} cannot be read")
        return []
    if written.marks:
        reading.marks |= written.marks
        stochastic = any(mark.mode == "stochastic" for mark in written.marks)
        reading.random |= stochastic and written.random and _has_philox(kernel.ptx)
        reading.kernels.add(kernel.name)
        return []
    operands = _operands(call)
    return [operands[n] for n in sorted(written.reads) if n < len(operands)]


def _has_philox(ptx: str) -> bool:
    return any(number in ptx for number in ("-766435501", _PHILOX, "0xD2511F53"))


def _rounding(program: Program, i: Instruction) -> Mark | None:
    """The rounding that this instruction ends, if it ends one."""
    if i.opcode == "floor":
        name = _format(program, Value(i.computation, i.operands[0]))
        return Mark(name, "stochastic") if name else None
    if i.opcode != "subtract":
        return None
    total, magic = (_made_by(program, v) for v in _operands(i))
    made = program.instructions[total.computation, total.name]
    if made.opcode != "add" or magic not in [_made_by(program, v) for v in _operands(made)]:
        return None
    name = _format(program, magic)
    return Mark(name, "nearest") if name else None


def _format(program: Program, gap: Value) -> str | None:
    """The format whose smallest binade bounds the gaps that a value is made of, the nearest one."""
    for i in _backwards(program, gap, limit=200):
        if i.opcode == "maximum":
            for operand in _operands(i):
                if (number := _constant(program, operand)) in _BIASED:
                    return _BIASED[number]
    return None


def _is_random(program: Program, floor: Instruction) -> bool:
    start = Value(floor.computation, floor.operands[0])
    steps = _backwards(program, start, limit=20_000)
    return any(i.opcode == "constant" and _number(i) == _PHILOX for i in steps)


def _backwards(program: Program, start: Value, limit: int) -> Iterator[Instruction]:
    """What a value is made of inside its quantizer, the nearest first."""
    queue, seen = deque([start]), {start}
    while queue and len(seen) < limit:
        value = queue.popleft()
        i = program.instructions[value.computation, value.name]
        before = origins(program, value)
        if not before:
            yield i
            before = _operands(i) if _in_quantizer(i) or i.opcode in _LOOKED_THROUGH else []
        for one in before:
            if one not in seen:
                seen.add(one)
                queue.append(one)


def _is_sign_or_exponent(program: Program, i: Instruction) -> bool:
    if i.opcode == "and":
        return any(_constant(program, v) in _SIGN for v in _operands(i))
    if i.opcode in ("shift-right-logical", "shift-right-arithmetic"):
        return _constant(program, _operands(i)[1]) == "23"
    return False


def _made_by(program: Program, value: Value) -> Value:
    """The value itself, under the name of the instruction that computes it."""
    while len(before := origins(program, value)) == 1:
        value = before[0]
    return value


def _constant(program: Program, value: Value) -> str:
    """The number that a value is everywhere, as text; empty if it is none."""
    value = _made_by(program, value)
    i = program.instructions[value.computation, value.name]
    while i.opcode in ("broadcast", "bitcast", "reshape", "copy", "convert"):
        value = _made_by(program, Value(i.computation, i.operands[0]))
        i = program.instructions[value.computation, value.name]
    return _number(i) if i.opcode == "constant" else ""


def _number(constant: Instruction) -> str:
    return constant.literal.strip("{} ")


def _operands(i: Instruction) -> list[Value]:
    return [Value(i.computation, name) for name in i.operands]


def _in_quantizer(i: Instruction) -> bool:
    """Whether it rounds an operand; XLA's own instructions, which have no name, count as such."""
    place = place_of(i.op_name)
    return not i.op_name or (place is not None and place.operand is not None)


def _told(i: Instruction) -> str:
    what = i.target or i.opcode
    return f"{what} {i.name}" + (f" ({i.op_name})" if i.op_name else "")

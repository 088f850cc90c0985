"""Products that XLA made one: those of the same input, such as queries, keys and values.

XLA lays the other operands side by side, multiplies once and cuts the result up again. The one
product keeps the name of one layer; the parts it concatenates tell the others.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from nvfp4_jax.compiled.flow import Value, origins
from nvfp4_jax.compiled.hlo import Program
from nvfp4_jax.scopes import Place, expanded, place_of

_MOVED = ("bitcast", "bitcast-convert", "broadcast", "convert", "copy", "pad", "reshape", "slice")
_BARRIER = "optimization_barrier"  # XLA takes it out in the end and leaves its name
_FAR = 200  # instructions between a part and the quantizer it comes from


def layers_of(program: Program, place: Place | None, operands: Iterable[Value]) -> tuple[str, ...]:
    """The layers that a product serves; none for one that has no name."""
    if place is None:
        return ()
    layers = dict.fromkeys(expanded(place.layer))
    for operand in operands:
        for part in _parts(program, operand):
            layers |= dict.fromkeys(_layers(program, part))
    return tuple(layers)


def _parts(program: Program, operand: Value) -> list[Value]:
    """What an operand is concatenated of, at the last step but moves; none if it is not."""
    for value in _backwards(program, operand, (*_MOVED, "transpose")):
        i = program.instructions[value.computation, value.name]
        if i.opcode == "concatenate":
            return [Value(i.computation, name) for name in i.operands]
    return []


def _layers(program: Program, part: Value) -> tuple[str, ...]:
    """The layers in whose quantizer a part was made."""
    for value in _backwards(program, part):
        place = place_of(program.instructions[value.computation, value.name].op_name)
        if place is not None and place.operand is not None:
            return expanded(place.layer)
    return ()


def _backwards(program: Program, start: Value, through: tuple[str, ...] | None = None):
    """What computes a value and what that is made of, the nearest first.

    With `through`, moves alone; and nothing is merged over a barrier, so none from beyond one.
    """
    queue, seen = deque([start]), {start}
    while queue and len(seen) < _FAR:
        value = queue.popleft()
        if through is not None and value.name.startswith(_BARRIER):
            continue
        before = origins(program, value)
        if not before:
            yield value
            i = program.instructions[value.computation, value.name]
            if through is None or i.opcode in through:
                before = [Value(i.computation, name) for name in i.operands]
        for one in before:
            if one not in seen:
                seen.add(one)
                queue.append(one)

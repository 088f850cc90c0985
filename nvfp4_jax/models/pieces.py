"""Saying which computations must be the same whoever computes them, however much of them.

How a compiled reduction adds up, and which products are fused with the sums that read them, depends
on the shapes that the compiler sees. Whoever wants the same bits from one device and from several,
each with some rows and some features, must have one compute what several do: piece by piece, each
of one size. Where more than a product or a copy is computed, a model says so, and along which axis
its features may be cut:

    y = in_pieces(norm, (x, 2), (weight, 0), result=2)

Whoever trains says what pieces are, by `cutting`; until then that is `norm(x, weight)`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar

from jax import Array

Operand = tuple[Array | None, int | None]
Function = Callable[..., Array]
Rule = Callable[[Function, tuple[Operand, ...], int | None], Array]

_rule: ContextVar[Rule | None] = ContextVar("pieces", default=None)


def in_pieces(function: Function, *operands: Operand, result: int | None) -> Array:
    """`function` of the operands, computed as `cutting` says.

    Args:
      function: of as many arrays, to one; rows, the first axis, know nothing of each other, nor do
        parts of the features, and sizes are read from what it is given. It closes over no arrays.
      operands: (array or None, its axis of features or None where all parts need all of it). None
        in place of an array is passed on. Where any has features, all that have a gradient do.
      result: the result's axis of features.
    """
    rule = _rule.get()
    if rule is None:
        return function(*(array for array, _ in operands))
    given = tuple(operand for operand in operands if operand[0] is not None)

    def of_given(*arrays: Array) -> Array:
        rest = iter(arrays)
        return function(*(None if array is None else next(rest) for array, _ in operands))

    return rule(of_given, given, result)


def is_cutting() -> bool:
    """Whether pieces mean anything."""
    return _rule.get() is not None


@contextlib.contextmanager
def cutting(rule: Rule | None) -> Iterator[None]:
    """While open (while a model is traced), `in_pieces` asks `rule(function, operands, result)`."""
    token = _rule.set(rule)
    try:
        yield
    finally:
        _rule.reset(token)

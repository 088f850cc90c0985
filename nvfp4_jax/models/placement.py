"""Saying how activations lie over devices, in words that know no devices.

A model names the axes of an array at the few places where it matters:

    x = place(x, "batch", "length", "hidden")

Whoever trains says what the words mean, by `placing`; until then they mean nothing and `place`
gives the array back. Between these places the compiler decides.

| word      | axis                                                            |
|-----------|-----------------------------------------------------------------|
| batch     | rows                                                            |
| length    | tokens of a row, where tokens do not meet: norms, linear layers |
| whole     | tokens of a row, where they do: convolution, scan, attention    |
| between   | tokens of the residual stream, between the layers               |
| hidden    | features of the residual stream                                 |
| features  | features inside a layer                                         |
| heads     | of the scan or of attention, or channels in whole heads         |
| within    | features of a head                                              |
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar

from jax import Array

Place = Callable[[Array, tuple[str, ...]], Array]

_place: ContextVar[Place | None] = ContextVar("place", default=None)
_cut: ContextVar[frozenset[str]] = ContextVar("cut", default=frozenset())


def place(x: Array, *axes: str) -> Array:
    """x, laid out as `placing` says for an array with these axes."""
    rule = _place.get()
    if len(axes) != x.ndim:
        raise ValueError(f"place: {len(axes)} names {axes} for an array of shape {x.shape}")
    return x if rule is None else rule(x, axes)


def is_cut(axis: str) -> bool:
    """Whether arrays are cut along this axis, where that changes what is best computed how."""
    return axis in _cut.get()


@contextlib.contextmanager
def placing(rule: Place | None, cut: frozenset[str] = frozenset()) -> Iterator[None]:
    """While open (while a model is traced), `place` asks `rule(x, axes)`; `cut` tells `is_cut`."""
    tokens = _place.set(rule), _cut.set(cut)
    try:
        yield
    finally:
        _place.reset(tokens[0])
        _cut.reset(tokens[1])

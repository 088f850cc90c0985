"""What reading a program finds: that a number was rounded, to which format and how."""

from __future__ import annotations

from typing import NamedTuple

RANDOM = "random"  # Philox's multiplier was seen

# Smallest exponent of the formats that `rounding.gap` knows, by which their roundings are told.
BINADES = {0: "e2m1", -6: "e4m3", -14: "e5m2"}
MANTISSA_BITS = {"e2m1": 1, "e4m3": 3, "e5m2": 2}


class Mark(NamedTuple):
    """A rounding: to `e2m1`, `e4m3` or `e5m2`, `nearest` or `stochastic`."""

    format: str
    mode: str


def is_rounding(mark: object) -> bool:
    """Whether a mark tells of a rounding."""
    return isinstance(mark, Mark)

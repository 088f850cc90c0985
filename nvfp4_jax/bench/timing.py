"""Times of variants that take turns, so that what changes meanwhile changes for all of them.

A GPU runs behind the program that feeds it. One timing is therefore of several calls, dispatched
one after the other, until the last is done: the dispatch of each hides behind the one before it,
and the wait at the end is small beside them all.

Large matrix products run at a GPU's power limit, and its clock follows the power of the last tens
of milliseconds. In short turns all variants share one clock; in training one of them runs all the
time. So products are timed in stretches of a quarter of a second.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax

LONG_ENOUGH = 0.01  # seconds of a timing, beside which a wait of 30 microseconds is nothing
STEADY = 0.25  # seconds in which a GPU's clock settles at what a variant's power allows
MOST_CALLS = 500
Call = Callable[[], Any]


@dataclass(frozen=True)
class Timing:
    """Seconds a call: the median of the rounds, and the quartiles around it."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, seconds: list[float]) -> Timing:
        """From one figure a round."""
        if len(seconds) == 1:
            return cls(*seconds * 3)
        low, median, high = statistics.quantiles(seconds, n=4, method="inclusive")
        return cls(median, low, high)

    def of_each(self, count: int) -> Timing:
        """Of one of `count` equal parts of a call."""
        return Timing(self.median / count, self.low / count, self.high / count)


def interleaved(
    variants: Mapping[str, Call],
    rounds: int,
    calls: int | None,
    stretch: float = LONG_ENOUGH,
) -> dict[str, Timing]:
    """Seconds a call of each variant, warmed up, in `rounds` rounds of all of them in turns.

    Every other round goes backwards, so that no variant always follows the same neighbour. All
    variants must run on one device, whose queue is in order. `calls` are those of one timing;
    None takes as many as make it last for `stretch` seconds.
    """
    for call in variants.values():
        warm_up(call)
    counts = {name: calls or _long_enough(call, stretch) for name, call in variants.items()}
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(rounds):
        for name in list(variants)[:: -1 if number % 2 else 1]:
            seconds[name].append(_timed(variants[name], counts[name]))
    return {name: Timing.of(taken) for name, taken in seconds.items()}


def warm_up(call: Call) -> None:
    """Run what a first call alone has to do: loading, allocation, choices by trial."""
    for _ in range(2):
        jax.block_until_ready(call())


def _long_enough(call: Call, stretch: float) -> int:
    return max(1, min(MOST_CALLS, math.ceil(stretch / _timed(call, 3))))


def _timed(call: Call, calls: int) -> float:
    result, start = None, time.perf_counter()
    for _ in range(calls):
        result = call()
    jax.block_until_ready(result)
    return (time.perf_counter() - start) / calls

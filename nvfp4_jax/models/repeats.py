"""Finding repeats: which stretch of blocks is one group of blocks over and over.

Sixty-two blocks unrolled are sixty-two copies of the same code to compile, and sixty-two sets of
gathered weights for the compiler to keep apart. Where a group repeats, a loop does with one copy.
What counts as equal is the caller's to say, by one label a block: the mixers alone, or the mixers
and the precision a recipe gives them. The 12B under the paper's recipe (first 2 and last 8 blocks
in BF16) has the labels of `M-M-M-M*-` six times and a tail; its first repeat differs in precision,
so repeats 2 to 6 are scanned and the rest is unrolled.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

LOOP_COST = 2  # in blocks


@dataclass(frozen=True)
class Repeat:
    """Blocks start .. start + period * count - 1 are `count` equal groups of `period` blocks."""

    start: int
    period: int
    count: int

    @property
    def stop(self) -> int:
        """One past the last block."""
        return self.start + self.period * self.count


def find_repeats(labels: Sequence[Hashable]) -> tuple[Repeat, ...]:
    """Disjoint repeats, in order, that leave the least code to compile.

    Code is counted in blocks: a block outside a repeat costs 1, a repeat of period p costs p + 2,
    since a loop stacks its parameters and must be worth it. Among equal costs the fewest repeats
    win, then the latest. Found by dynamic programming over the start.

    Args:
      labels: one hashable value a block; blocks with equal labels are interchangeable.
    """
    best: list[tuple[int, int, tuple[Repeat, ...]]] = [(0, 0, ())] * (len(labels) + 1)
    for start in reversed(range(len(labels))):
        cost, loops, found = best[start + 1]
        options = [(cost + 1, loops, found)]
        for repeat in _repeats_at(labels, start):
            cost, loops, found = best[repeat.stop]
            options.append((cost + repeat.period + LOOP_COST, loops + 1, (repeat, *found)))
        best[start] = min(options, key=lambda option: option[:2])
    return best[0][2]


def _repeats_at(labels: Sequence[Hashable], start: int):
    """Every repeat that begins at `start`, for each period with its largest count."""
    for period in range(1, (len(labels) - start) // 2 + 1):
        matching = 0
        while (
            start + period + matching < len(labels)
            and labels[start + matching] == labels[start + period + matching]
        ):
            matching += 1
        count = matching // period + 1
        if count > 1:
            yield Repeat(start, period, count)

"""What one SM computes at a time in the Hopper GEMM, and in which order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

CONSUMERS = 2  # warpgroups that multiply; a third one loads


@dataclass(frozen=True)
class Problem:
    """An output of shape (m, n) in `dtype` from operands contracted over k, each along its axis."""

    m: int
    n: int
    k: int
    contract_a: int
    contract_b: int
    dtype: Any  # numpy dtype

    @property
    def row_bytes(self) -> int:
        """Bytes of operands in a row of shared memory: the widest that divides every length."""
        return 128 if all(length % 64 == 0 for length in (self.m, self.n, self.k)) else 64


@dataclass(frozen=True)
class Tiling:
    """Tile sizes and their order.

    Attributes:
      m, n: the output tile a CTA computes at a time.
      k: contraction of one stage of the ring.
      stages: of the ring.
      split: the axis of a tile that the two consumers divide, `"m"` or `"n"`.
      shared: `"m"` if the two CTAs of a cluster lie along m and share the b operand, `"n"` if they
        lie along n and share a; None for no clusters.
      minor, width: tiles are walked in stripes of `width` tiles along output axis `minor`.
      lead: steps by which the first consumer is ahead of the second, so that one multiplies while
        the other scales and stores.
    """

    m: int = 128
    n: int = 256
    k: int = 64
    stages: int = 4
    split: str = "m"
    shared: str | None = "m"
    minor: int = 1
    width: int = 8
    lead: int = 0

    @property
    def cluster(self) -> int:
        """CTAs that share an operand."""
        return 1 if self.shared is None else 2

    def clusters(self, problem: Problem) -> tuple[int, int]:
        """Clusters along m and n that cover the output."""
        m = self.m * (2 if self.shared == "m" else 1)
        n = self.n * (2 if self.shared == "n" else 1)
        return -(-problem.m // m), -(-problem.n // n)


def tiling_for(problem: Problem) -> Tiling:
    """The tiling of the table for this product."""
    return Tiling()

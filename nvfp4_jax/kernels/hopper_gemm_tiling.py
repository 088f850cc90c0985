"""What one SM computes at a time in the Hopper GEMM, and in which order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

CONSUMERS = 2  # warpgroups that multiply; a third one loads
CLUSTER = 2  # CTAs that lie along m and share the tiles of b
TILE_M = 128  # of a CTA: 64 rows, the shape of wgmma, for each consumer
TILE_K = 64  # of a stage: four wgmma along k, and rows of 128 bytes


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
    def steps(self) -> int:
        """Stages that one output tile takes."""
        return -(-self.k // TILE_K)


@dataclass(frozen=True)
class Tiling:
    """The choices that depend on the problem.

    Attributes:
      n: columns of the output tile of a CTA.
      stages: of the ring in shared memory.
      cost: time of a tile, in columns of the widest tiling.
      lead: steps by which the first consumer is ahead of the second, so that one multiplies while
        the other scales and stores.
      width: tiles are walked in stripes of this many along n.
    """

    n: int = 256
    stages: int = 4
    cost: int = 256
    lead: int = 0
    width: int = 8

    def clusters(self, problem: Problem) -> tuple[int, int]:
        """Clusters along m and n that cover the output."""
        return -(-problem.m // (CLUSTER * TILE_M)), -(-problem.n // self.n)

    def waves(self, problem: Problem, sm_count: int) -> int:
        """Tiles that the busiest SM computes."""
        rows, columns = self.clusters(problem)
        return -(-rows * columns // (sm_count // CLUSTER))

    def operand_row(self, problem: Problem) -> int:
        """Bytes of a row of operand tiles in shared memory: the widest that divides all."""
        lengths = [problem.m, problem.n, problem.k, TILE_K if problem.contract_b else self.n]
        return 128 if all(length % 64 == 0 for length in lengths) else 64

    def output_row(self, problem: Problem) -> int:
        """Bytes of a row of the staged output, likewise; 32 columns of FP32 are 128 bytes."""
        whole = problem.n % 64 == 0 and self.n % 64 == 0
        return 128 if whole or problem.dtype.itemsize == 4 else 64


# Stages fill the 227 KiB of shared memory. Narrower tiles read more per product, so they cost
# more than their width; they win where the last wave of wide ones would leave SMs idle.
TILINGS = (
    Tiling(n=256, stages=4, cost=256),
    Tiling(n=224, stages=4, cost=228),
    Tiling(n=192, stages=4, cost=198),
    Tiling(n=160, stages=5, cost=176),
    Tiling(n=128, stages=6, cost=154),
)


def tiling_for(problem: Problem, sm_count: int) -> Tiling:
    """The tiling of the table that finishes first."""
    return min(TILINGS, key=lambda tiling: tiling.waves(problem, sm_count) * tiling.cost)

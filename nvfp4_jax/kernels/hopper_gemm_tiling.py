"""What one SM computes at a time in the Hopper GEMM, and in which order.

At 4096 and 8192 cubed an H100 runs at its limit of power, as with cuBLAS. No faster there: clusters
along n or none, consumers side by side along n, tiles of 256 x 128, three stages, stripes of 4 or
16 or along m, a head start of one consumer so that one multiplies while the other stores.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

CONSUMERS = 2  # warpgroups that multiply; a third one loads
CLUSTER = 2  # CTAs that lie along m and share the tiles of b
TILE_M = 128  # of a CTA: 64 rows, the shape of wgmma, for each consumer
TILE_K = 64  # of a stage: four wgmma along k, and rows of 128 bytes
STRIPE = 8  # clusters along n in a stripe of tiles: a wave of 66 is then about as long as wide


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
      cost: time of a tile beside one of 256 columns, which costs 256.
    """

    n: int
    stages: int
    cost: int

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


# As many stages as 227 KiB of shared memory hold beside the staged output. A narrower tile reads
# more per product, so it costs more than its width (median of 6 products with K from 768 to 16384
# on an H100), and wins where the last wave of wide ones would leave SMs idle: 1280 x 7200 from
# 16384 tokens takes 0.80 of the time in tiles of 192 columns, 1280 x 5120 0.89 in tiles of 224.
TILINGS = (
    Tiling(n=256, stages=4, cost=256),
    Tiling(n=224, stages=4, cost=231),
    Tiling(n=192, stages=4, cost=196),
    Tiling(n=160, stages=5, cost=184),
    Tiling(n=128, stages=6, cost=152),
)


# What a product may lose to idle SMs, in terms of each sum, before cuBLAS is faster: it splits k. A
# pass of its own for the scales, 8 bytes an element of an FP32 result, takes an H100 as long as
# 1100 terms. Wgrad of a narrow layer, 768 x 3072 from 32,768 tokens, loses 6800: it took 1.35 times
# cuBLAS's time. At 1280 x 5120 from 16,384 tokens, 1300, there is nothing to win.
WORTH_A_PASS = 2500
BUSY = 0.9  # of cuBLAS, beside tiles of 256 columns that fill every wave


def wasted_terms(problem: Problem, sm_count: int) -> float:
    """Terms of each sum that could be added while SMs are idle or tiles narrow, beside cuBLAS."""
    tiling = tiling_for(problem, sm_count)
    paid = tiling.waves(problem, sm_count) * sm_count * TILE_M * tiling.cost
    return problem.k * (paid / (problem.m * problem.n) - 1 / BUSY)


def tiling_for(problem: Problem, sm_count: int) -> Tiling:
    """The tiling of the table that finishes first."""
    return min(TILINGS, key=lambda tiling: tiling.waves(problem, sm_count) * tiling.cost)

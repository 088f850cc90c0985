"""What one SM, or a pair of them, computes at a time in the Blackwell GEMM, and in which order.

Two budgets shape the table. Shared memory, 227 KiB, holds the ring of operand stages and the staged
output. Tensor memory, 128 lanes x 512 columns of 32 bits, holds the FP32 sums of two tiles, so that
one is stored while the next is computed, and the block scales of one step. Two tiles of 256 columns
and 48 columns of scales are 48 too many: there the tiles overlap, and the next may start as soon as
the columns that both use have been read, which are therefore read first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

BLOCK = 16  # elements that share a scale
LANES = 128  # rows of an output tile of one CTA, and of a tile of scales
STEP_K = 256  # elements along k of a stage: rows of 128 bytes, the widest swizzle there is
SCALES_K = 64  # elements along k of a 512-byte tile of scales: 128 rows x 4 blocks
INSTRUCTION_K = 64  # elements along k that one instruction contracts
TMEM_COLUMNS = 512
ROWS = 8  # that TMA swizzles together
STORE_ROW = 128  # bytes of a row of the staged output
STAGING = 2  # buffers of the staged output
STRIPE = 8  # tiles along n in a stripe of tiles: a wave of 74 pairs is then about as long as wide


def up_to(multiple: int, length: int) -> int:
    """The next multiple at or above `length`."""
    return -(-length // multiple) * multiple


@dataclass(frozen=True)
class Problem:
    """An output of shape (m, n) in `dtype` from operands contracted over k, as they lie in memory.

    m is made of whole groups of 8 rows, n of whole stores and of two of them at least, k of whole
    steps: what is beyond the true sizes is zero, and sliced away.
    """

    m: int
    n: int
    k: int
    dtype: Any  # numpy dtype

    @classmethod
    def of(cls, m: int, n: int, k: int, dtype: Any) -> Problem:
        """The problem of these true sizes."""
        width = STORE_ROW // dtype.itemsize
        # TMA loses the axis of stores, and with it the check of bounds, where there is one store.
        return cls(up_to(ROWS, m), max(up_to(width, n), 2 * width), up_to(STEP_K, k), dtype)

    @property
    def steps(self) -> int:
        """Stages that one output tile takes."""
        return self.k // STEP_K

    @property
    def store_columns(self) -> int:
        """Columns of the output that are staged and stored at once."""
        return STORE_ROW // self.dtype.itemsize


@dataclass(frozen=True)
class Tiling:
    """The choices that depend on the problem.

    Attributes:
      ctas: that share a tile and each instruction: one, or a pair (`cta_group::2`).
      n: columns of the tile, multiplied by one instruction.
      stages: of the ring in shared memory.
      cost: time of a tile beside one of 256 x 256 by a pair, which costs 256.
    """

    ctas: int
    n: int
    stages: int
    cost: int

    @property
    def m(self) -> int:
        """Rows of the tile."""
        return self.ctas * LANES

    @property
    def own_n(self) -> int:
        """Rows of b that one CTA of the pair holds."""
        return self.n // self.ctas

    @property
    def scale_columns(self) -> int:
        """Of tensor memory: 4 for each 128 x 4 tile of scales, of a and of b."""
        return 4 * (STEP_K // SCALES_K) * (1 + self.n // LANES)

    @property
    def second(self) -> int:
        """Column where the sums of every other tile begin."""
        return min(self.n, TMEM_COLUMNS - self.scale_columns - self.n)

    @property
    def overlap(self) -> int:
        """Columns that belong to the sums of both tiles."""
        return self.n - self.second

    @property
    def lag(self) -> int:
        """Tiles between a tile and the one whose reading it waits for."""
        return 1 if self.overlap else 2

    def chunks(self, problem: Problem) -> int:
        """Stores that one tile takes."""
        return self.n // problem.store_columns

    def chunk(self, problem: Problem, slot: Any, i: int) -> Any:
        """Which columns of a tile the i-th store takes: first those that the next tile overwrites.

        The even tile (slot 0) begins at column 0 and shares its last columns, the odd one its
        first.
        """
        return i * slot + (self.chunks(problem) - 1 - i) * (1 - slot)

    def released_after(self, problem: Problem) -> int:
        """The store after whose reading the next tile that needs these columns may start."""
        shared = self.overlap or self.n
        return -(-shared // problem.store_columns) - 1

    def grid(self, problem: Problem) -> tuple[int, int]:
        """Tiles along m and n that cover the output."""
        return -(-problem.m // self.m), -(-problem.n // self.n)

    def waves(self, problem: Problem, sm_count: int) -> int:
        """Tiles that the busiest SM computes."""
        rows, columns = self.grid(problem)
        return -(-rows * columns // (sm_count // self.ctas))

    def stage_bytes(self) -> int:
        """Shared memory of one stage of one CTA: codes of a and b, scales of a, all scales of b."""
        scales = (LANES + self.n) * STEP_K // BLOCK
        return (LANES + self.own_n) * STEP_K // 2 + scales

    def staging_bytes(self) -> int:
        """Shared memory of the staged output."""
        return STAGING * LANES * STORE_ROW


# As many stages as 227 KiB of shared memory hold beside the staged output, at most six. Costs are
# no measurements (there was no Blackwell) but the time of a step in experiments/blackwell_roofline
# where L2 gives each SM 64 bytes a clock: a smaller tile loads more for each product.
TILINGS = (
    Tiling(ctas=2, n=256, stages=5, cost=256),
    Tiling(ctas=2, n=128, stages=6, cost=189),
    Tiling(ctas=1, n=128, stages=5, cost=243),
)


def tiling_for(problem: Problem, sm_count: int) -> Tiling:
    """The tiling of the table that finishes first."""
    return min(TILINGS, key=lambda tiling: tiling.waves(problem, sm_count) * tiling.cost)

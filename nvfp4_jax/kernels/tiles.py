"""Tile choices of the GPU kernels: one table, with its reasons.

A program works on `rows` x (16 * blocks) elements; one thread holds 16 / threads_a_block
neighbouring columns of every row (see `triton_tiles`). Shares are of a copy's bandwidth, measured
on an H100 with 8192 x 8192 bf16.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

BLOCK = 16


@dataclass(frozen=True)
class Copy:
    """One quantized copy of a tensor.

    `axis` is the contraction axis. `square`: tiles of 16x16 share a scale instead of 16 elements.
    `rht`: rotated along the axis first, by the transform of length 16. `bits`: 0 rounds to
    nearest, 8, 16 or 32 stochastically with that many random bits an element.
    """

    axis: Literal["rows", "columns"]
    square: bool = False
    rht: bool = False
    bits: int = 0


@dataclass(frozen=True)
class Tile:
    """Rows, blocks of 16 columns, threads that share a block's columns, and warps."""

    rows: int
    blocks: int
    threads_a_block: int
    warps: int


@dataclass(frozen=True)
class NativeTile:
    """Of the kernels for 4-bit tensor cores: blocks of 16x16 below and beside each other."""

    down: int
    across: int
    threads_a_block: int
    warps: int


# Blocks along columns: a thread has half a block, one vector of 16 bytes, of each row. Random
# numbers cost registers for words in transit, which more rows a program put to use: 97% (near 4
# rows and stochastic 8; 8 and 4: 96, 93).
COLUMNS = Tile(rows=4, blocks=32, threads_a_block=2, warps=4)
COLUMNS_STOCHASTIC = Tile(rows=8, blocks=32, threads_a_block=2, warps=4)
# Blocks along rows: 16 rows of 4 columns in a thread's registers, 8 bytes a row. Two copies reach
# 98%, tiles 96, rotated ones 95.
ROWS = Tile(rows=16, blocks=32, threads_a_block=4, warps=4)
# With random numbers, which threads of a program exchange, fewer threads wait for each other. With
# 128 registers a thread, 16 warps of a multiprocessor read and compute in turns: two copies 92%,
# rotated 96 (168 registers, 12 warps: 87, 89; one warp a program or four: 1 and 3 less).
ROWS_STOCHASTIC = Tile(rows=16, blocks=16, threads_a_block=4, warps=2)
# A rotated block along columns belongs to one thread as a whole.
ROTATED_COLUMNS = Tile(rows=4, blocks=32, threads_a_block=1, warps=2)
# The largest magnitude of a tensor as it is stored: elements a program, and warps.
AMAX_RUN, AMAX_WARPS = 8192, 8


def for_operands(copies: Sequence[Copy]) -> Tile:
    """The tile that suits both of two copies, or the one."""
    stochastic = any(copy.bits for copy in copies)
    if any(copy.axis == "rows" or copy.square for copy in copies):
        return ROWS_STOCHASTIC if stochastic else ROWS
    if any(copy.rht for copy in copies):
        return ROTATED_COLUMNS
    return COLUMNS_STOCHASTIC if stochastic else COLUMNS


# For 4-bit tensor cores: 128 rows by 4 blocks is a whole tile of scales, and a column's codes are
# 64 bytes in a row. Chosen by what sm_100a's machine code needs: 128 registers, 38 instructions an
# element for two stochastic copies (64 with half the elements a thread). Not timed on a Blackwell.
NATIVE = NativeTile(down=8, across=4, threads_a_block=4, warps=4)
NATIVE_COLUMNS = NativeTile(down=8, across=4, threads_a_block=2, warps=4)
NATIVE_ROTATED_COLUMNS = NativeTile(down=8, across=4, threads_a_block=1, warps=4)


def for_native(copies: Sequence[Copy]) -> NativeTile:
    """The tile that suits both of two copies for 4-bit tensor cores, or the one."""
    if any(copy.axis == "rows" or copy.square for copy in copies):
        return NATIVE
    return NATIVE_ROTATED_COLUMNS if any(copy.rht for copy in copies) else NATIVE_COLUMNS


def for_amax(copies: Sequence[Copy]) -> Tile:
    """For magnitudes of rotations; nothing is rounded."""
    return for_operands([replace(copy, bits=0) for copy in copies])


def narrowed(tile: Tile, columns: int) -> Tile:
    """`tile` with no more blocks than hold `columns` columns, a power of two."""
    needed = 1 << max(0, (-(-columns // BLOCK) - 1).bit_length())
    if needed >= tile.blocks:
        return tile
    return replace(tile, blocks=needed, warps=max(1, tile.warps * needed // tile.blocks))

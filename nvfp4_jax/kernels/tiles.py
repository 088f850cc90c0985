"""Tile choices of the GPU kernels: one table, with its reasons.

A program works on `rows` x (16 * blocks) elements; one thread holds 16 / threads_a_block
neighbouring columns of every row (see `triton_tiles`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Tile:
    """Rows, blocks of 16 columns, threads that share a block's columns, and warps.

    `resident`: 0 gives every tile a program of its own; else that many programs stay on each
    multiprocessor and take one tile after another, the next ones (`stages` in all) being copied
    to shared memory meanwhile.
    """

    rows: int
    blocks: int
    threads_a_block: int
    warps: int
    resident: int = 0
    stages: int = 1


# One row a thread: a block of 16 columns is two vectors of 16 bytes, half a block each.
COLUMNS = Tile(rows=4, blocks=32, threads_a_block=2, warps=4)
# Blocks along rows: 16 rows of 4 columns in a thread's registers.
ROWS = Tile(rows=16, blocks=16, threads_a_block=4, warps=2)
# Rotated blocks along columns belong to one thread as a whole.
ROTATED_COLUMNS = Tile(rows=4, blocks=32, threads_a_block=1, warps=2)
AMAX_RUN, AMAX_WARPS = 8192, 8


def narrowed(tile: Tile, columns: int) -> Tile:
    """`tile` with no more blocks than hold `columns` columns, a power of two."""
    needed = 1 << max(0, (-(-columns // 16) - 1).bit_length())
    if needed >= tile.blocks:
        return tile
    warps = max(1, tile.warps * needed // tile.blocks)
    return replace(tile, blocks=needed, warps=warps)

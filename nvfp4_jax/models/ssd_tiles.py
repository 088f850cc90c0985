"""How the fused scan is cut into programs: sizes of arrays and of tiles, one frozen table.

A tile's side is a power of two; what it holds beyond the array is masked, and neither read nor
written. A head dim of 80 would waste three eighths of a side of 128, so it is cut in two (`parts`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import jax.numpy as jnp
from jax.typing import DTypeLike

SMALLEST = 16  # a tile's side; tensor cores take no less
LARGEST_STATE, LARGEST_HEAD_DIM = 128, 128  # beyond, tiles outgrow shared memory and registers
HEADS = 16  # of a program that transposes dt and adds it up


class Sizes(NamedTuple):
    """Of the arrays of one call."""

    batch: int
    length: int
    heads: int
    groups: int
    head_dim: int
    state: int

    @property
    def share(self) -> int:
        """Heads of a group."""
        return self.heads // self.groups


@dataclass(frozen=True)
class Launch:
    """Rows of a tile (of what: see `Tiles`), warps of a program, stages of its loads in flight."""

    rows: int
    warps: int
    stages: int


ALONG = Launch(0, 4, 1)  # of the kernels that only see dt


@dataclass(frozen=True)
class Tiles:
    """One row of the table."""

    chunk: int  # Q, at most
    states: Launch  # rows of the state, N
    state_gradients: Launch  # the same
    outputs: Launch  # rows: tokens written
    output_heads: int  # heads a program of `outputs` goes through with one C B^T
    gradients: Launch  # rows: tokens written


# bfloat16: measured on an H100 at 128 heads of 80 and N = 128; two programs of `gradients` share
# a multiprocessor. The A100 has as much shared memory, within the same launch.
# float32: exact products have no tensor cores, and run in tiles that fit in registers.
TILES: dict[str, Tiles] = {
    "bfloat16": Tiles(
        chunk=128,
        states=Launch(64, 4, 2),
        state_gradients=Launch(64, 4, 2),
        outputs=Launch(128, 8, 3),
        output_heads=4,
        gradients=Launch(64, 4, 2),
    ),
    "float32": Tiles(
        chunk=32,
        states=Launch(16, 4, 1),
        state_gradients=Launch(16, 4, 1),
        outputs=Launch(32, 4, 1),
        output_heads=4,
        gradients=Launch(32, 4, 1),
    ),
}

# GPUs of 8.6 and 8.9 have 99 KiB of shared memory a program: fewer loads in flight.
SMALL = (86, 89)
SMALL_TILES = {
    **TILES,
    "bfloat16": replace(TILES["bfloat16"], outputs=Launch(64, 4, 1), gradients=Launch(64, 4, 1)),
}


def tiles(dtype: DTypeLike, capability: int) -> Tiles:
    """The row for a dtype of x and a GPU, 90 for Hopper."""
    return (SMALL_TILES if capability in SMALL else TILES)[jnp.dtype(dtype).name]


def chunk(asked: int, length: int, dtype: DTypeLike) -> int:
    """Tokens of a chunk: the power of two that holds what is asked for, as far as tiles go."""
    return min(TILES[jnp.dtype(dtype).name].chunk, padded(min(asked, length)))


def obstacle(dtype: DTypeLike, head_dim: int, state: int) -> str | None:
    """Why the kernels do not take such a scan; None if they do."""
    if jnp.dtype(dtype).name not in TILES:
        return f"x is {jnp.dtype(dtype).name}, and the kernels take {' and '.join(TILES)}"
    if head_dim > LARGEST_HEAD_DIM or state > LARGEST_STATE:
        return (
            f"head dim {head_dim} and state {state} are beyond {LARGEST_HEAD_DIM} and "
            f"{LARGEST_STATE}, the largest tiles"
        )
    return None


def padded(size: int) -> int:
    """The side of a tile that holds `size`: a power of two, at least SMALLEST."""
    return max(SMALLEST, 1 << (size - 1).bit_length())


def parts(size: int) -> tuple[int, int]:
    """Tile sides whose sum holds `size`: one, or two where that is less (80: 64 and 16)."""
    main = 1 << (size.bit_length() - 1)
    if main < SMALLEST or main == size or main + padded(size - main) >= padded(size):
        return padded(size), 0
    return main, padded(size - main)


def divisor(number: int, limit: int) -> int:
    """The largest divisor of `number` that is not above `limit`."""
    return next(d for d in range(min(number, limit), 0, -1) if number % d == 0)

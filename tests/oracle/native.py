"""Reading the operands of a 4-bit tensor core, from what their layout's description says.

Codes are bytes (rows, Kp / 2) with K contiguous; the element at k is the low nibble of byte k // 2
for an even k, else the high one. Scales are E4M3 bytes in tiles of 128 rows by 4 blocks of 16
elements, 512 bytes each; tiles of the same rows follow one another. Within a tile the scale of row
r and block j is at byte 16 (r mod 32) + 4 (r div 32) + j.

Written element by element, from a flat array of bytes, so as not to share the arithmetic of
reshapes and transpositions with what it reads.
"""

from __future__ import annotations

import numpy as np

from .formats import E2M1, E4M3

TILE_ROWS, TILE_BLOCKS, TILE_BYTES = 128, 4, 512


def code_at(codes: np.ndarray, row: int, k: int) -> int:
    """The four bits of an element."""
    byte = int(codes[row, k // 2])
    return byte >> 4 if k % 2 else byte & 15


def scale_place(row: int, block: int, blocks: int) -> int:
    """Where, in bytes from the start, the scale of a row's block is, of `blocks` a row in all."""
    tile = (row // TILE_ROWS) * (blocks // TILE_BLOCKS) + block // TILE_BLOCKS
    r, j = row % TILE_ROWS, block % TILE_BLOCKS
    return tile * TILE_BYTES + 16 * (r % 32) + 4 * (r // 32) + j


def read(codes: np.ndarray, scales: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(E2M1 codes (rows, Kp), E4M3 scales (rows, Kp / 16)) with their padding along K."""
    rows, length = codes.shape[0], 2 * codes.shape[1]
    blocks, flat = length // 16, scales.reshape(-1).view(np.uint8)
    out = np.empty((rows, length), np.uint8)
    scale = np.empty((rows, blocks), np.uint8)
    for row in range(rows):
        for k in range(length):
            out[row, k] = code_at(codes, row, k)
        for block in range(blocks):
            scale[row, block] = flat[scale_place(row, block, blocks)]
    return out.view(E2M1), scale.view(E4M3)


def values(codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Element times block scale in float32, (rows, Kp)."""
    elements, scale = read(codes, scales)
    return elements.astype(np.float32) * np.repeat(scale.astype(np.float32), 16, axis=1)


def padding(scales: np.ndarray, rows: int, blocks: int) -> np.ndarray:
    """The bytes of the scales that belong to no block of a (rows, 16 blocks) operand."""
    used = {
        scale_place(row, block, scales.shape[1] * TILE_BLOCKS)
        for row in range(rows)
        for block in range(blocks)
    }
    flat = scales.reshape(-1).view(np.uint8)
    return flat[[place for place in range(flat.size) if place not in used]]

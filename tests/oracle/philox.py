"""Philox4x32-10: ten rounds of multiply and exchange turn a counter into 128 random bits.

Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011). The element of a
tensor finds its bits by its place, so it gets the same ones on one device or on a thousand.
"""

from __future__ import annotations

import numpy as np

MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
WEYL = (0x9E3779B9, 0xBB67AE85)  # what the two key words grow by after each round
LOW = np.uint64(0xFFFFFFFF)


def philox4x32(counter, key) -> np.ndarray:
    """Four output words for each counter: `counter` is (..., 4) uint32, `key` two uint32."""
    c = [np.asarray(counter)[..., i].astype(np.uint64) for i in range(4)]
    k = [int(key[0]), int(key[1])]
    for _ in range(10):
        first, second = MULTIPLIERS[0] * c[0], MULTIPLIERS[1] * c[2]
        c = [
            (second >> np.uint64(32)) ^ c[1] ^ np.uint64(k[0]),
            second & LOW,
            (first >> np.uint64(32)) ^ c[3] ^ np.uint64(k[1]),
            first & LOW,
        ]
        k = [(k[i] + WEYL[i]) & 0xFFFFFFFF for i in range(2)]
    return np.stack(c, axis=-1).astype(np.uint32)


def bits_at(rows, columns, key, bits: int, stream: int = 0) -> np.ndarray:
    """The `bits` random bits of the elements at (rows, columns), as uint32.

    128 / bits consecutive columns share one call: element j of it takes byte j, half j or
    word j, counted from the lowest of word 0.
    """
    rows, columns = np.broadcast_arrays(np.asarray(rows, np.uint64), np.asarray(columns, np.uint64))
    elements_per_call = 128 // bits
    counter = np.stack(
        [
            columns // np.uint64(elements_per_call),
            rows & LOW,
            rows >> np.uint64(32),
            np.full_like(rows, stream),
        ],
        axis=-1,
    )
    words = philox4x32(counter, key)
    j = (columns % np.uint64(elements_per_call)).astype(np.int64)
    per_word = 32 // bits
    word = np.take_along_axis(words, (j // per_word)[..., None], axis=-1)[..., 0]
    shift = (j % per_word * bits).astype(np.uint32)
    return (word >> shift) & np.uint32((1 << bits) - 1)


def uniform_at(rows, columns, key, bits: int) -> np.ndarray:
    """u in [0, 1), float32: the bits over 2^bits; of 32 bits the top 24, which float32 can hold."""
    drawn = bits_at(rows, columns, key, bits)
    if bits == 32:
        drawn, bits = drawn >> np.uint32(8), 24
    return (drawn.astype(np.float64) / 2.0**bits).astype(np.float32)

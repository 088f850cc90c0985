"""The randomized Hadamard transform: every n elements times diag(sign) @ H_n / sqrt(n)."""

from __future__ import annotations

import numpy as np

SIGNS_16 = (1, 1, 1, -1, 1, -1, -1, -1, -1, -1, -1, 1, -1, 1, -1, -1)


def rotate(x: np.ndarray, signs) -> np.ndarray:
    """Rotate the last axis of a float32 `x`, whose length is a multiple of len(signs).

    The order is fixed, for sums in float32 depend on it: signs, then butterflies of width 1, 2,
    4, ..., then the factor 1 / sqrt(n).
    """
    n = len(signs)
    v = x.reshape(*x.shape[:-1], -1, n) * np.asarray(signs, np.float32)
    width = 1
    while width < n:
        out = np.empty_like(v)
        for low in (i for i in range(n) if not i & width):
            a, b = v[..., low], v[..., low + width]
            out[..., low], out[..., low + width] = a + b, a - b
        v, width = out, 2 * width
    return (v * np.float32(1 / np.sqrt(n))).reshape(x.shape)

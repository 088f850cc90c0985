"""The formats as a table: element, its largest value, default block, and kind of scale."""

from __future__ import annotations

from dataclasses import dataclass

import ml_dtypes
import numpy as np

E2M1 = np.dtype(ml_dtypes.float4_e2m1fn)
E4M3 = np.dtype(ml_dtypes.float8_e4m3fn)
E5M2 = np.dtype(ml_dtypes.float8_e5m2)
E8M0 = np.dtype(ml_dtypes.float8_e8m0fnu)

# largest value; mantissa bits; exponent of the smallest normal value; exponent of the largest
ELEMENT = {E2M1: (6.0, 1, 0, 2), E4M3: (448.0, 3, -6, 8), E5M2: (57344.0, 2, -14, 15)}
FORMAT = {
    "nvfp4": (E2M1, "1x16"),
    "mxfp4": (E2M1, "1x32"),
    "mxfp8_e4m3": (E4M3, "1x32"),
    "mxfp8_e5m2": (E5M2, "1x32"),
    "fp8_e4m3": (E4M3, "1x128"),
    "fp8_e5m2": (E5M2, "tensor"),
}


@dataclass(frozen=True)
class Spec:
    """What to do to one operand; `signs` is the diagonal of the rotation, for `rht` elements."""

    format: str = "nvfp4"
    granularity: str | None = None
    rounding: str = "nearest"
    bits: int = 8
    rht: int = 0
    scale: str | None = None
    signs: tuple[int, ...] | None = None

    @property
    def element(self) -> np.dtype:
        return FORMAT[self.format][0]

    @property
    def block(self) -> tuple[int, int] | None:
        """(rows, elements along the contraction) that share a scale; None: the whole tensor."""
        text = self.granularity or FORMAT[self.format][1]
        if text == "tensor":
            return None
        rows, columns = text.split("x")
        return int(rows), int(columns)

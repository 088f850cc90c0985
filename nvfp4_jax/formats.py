"""Number formats as data.

A quantized tensor is made of *elements* (4 or 8 bits) and *scales* that a block of elements
shares. This module says which elements there are, which scales may go with them and how large
a block may be; no arithmetic happens here. A new format is a new row in a table, not a class.

| format        | element | block scale      | tensor scale | default block |
|---------------|---------|------------------|--------------|---------------|
| `nvfp4`       | E2M1    | E4M3             | FP32         | 1x16          |
| `mxfp4`       | E2M1    | E8M0 (2^k)       | -            | 1x32          |
| `mxfp8_e4m3`  | E4M3    | E8M0 (2^k)       | -            | 1x32          |
| `mxfp8_e5m2`  | E5M2    | E8M0 (2^k)       | -            | 1x32          |
| `fp8_e4m3`    | E4M3    | FP32 (or tensor) | FP32         | 1x128         |
| `fp8_e5m2`    | E5M2    | FP32 (or tensor) | FP32         | tensor        |

Sources: arXiv 2509.25149 appendix B (NVFP4), the OCP Microscaling specification 1.0 (MX).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import jax.numpy as jnp
from jax.typing import DTypeLike

ScaleKind = Literal["e4m3", "e8m0", "float32"]


@dataclass(frozen=True)
class Element:
    """A small floating-point format without infinities in the range we use.

    A value is `± m * 2^(e - mantissa_bits)` with an integer `m`; below `2^min_exponent` the gap
    between neighbours stays that of the lowest binade (subnormals).
    """

    dtype: DTypeLike
    mantissa_bits: int
    min_exponent: int
    max: float

    @property
    def max_exponent(self) -> int:
        """The exponent of the largest value: floor(log2(max)), `emax` in the MX specification."""
        return int(self.max).bit_length() - 1


E2M1 = Element(jnp.float4_e2m1fn, mantissa_bits=1, min_exponent=0, max=6.0)
E4M3 = Element(jnp.float8_e4m3fn, mantissa_bits=3, min_exponent=-6, max=448.0)
E5M2 = Element(jnp.float8_e5m2, mantissa_bits=2, min_exponent=-14, max=57344.0)


@dataclass(frozen=True)
class Format:
    """An element with the scales and block shapes it may take; the first of each is the default.

    `scales` are the rules for the block scale: `amax` (amax / max as it is), `up` and `floor`
    (a power of two, rounded up, or as the MX specification rounds it), `power_of_two` (amax / max
    rounded up to a power of two, kept in FP32).
    """

    element: Element
    scale_kind: ScaleKind
    granularities: tuple[str, ...]
    scales: tuple[str, ...]


FORMATS: dict[str, Format] = {
    "nvfp4": Format(E2M1, "e4m3", ("1x16", "16x16"), ("amax",)),
    "mxfp4": Format(E2M1, "e8m0", ("1x32",), ("up", "floor")),
    "mxfp8_e4m3": Format(E4M3, "e8m0", ("1x32",), ("up", "floor")),
    "mxfp8_e5m2": Format(E5M2, "e8m0", ("1x32",), ("up", "floor")),
    "fp8_e4m3": Format(E4M3, "float32", ("1x128", "128x128", "tensor"), ("amax", "power_of_two")),
    "fp8_e5m2": Format(E5M2, "float32", ("tensor", "1x128", "128x128"), ("amax", "power_of_two")),
}


def block_shape(granularity: str) -> tuple[int, int] | None:
    """(rows, length along the contraction axis) of a block; None when it is the whole tensor."""
    if granularity == "tensor":
        return None
    rows, columns = granularity.split("x")
    return int(rows), int(columns)

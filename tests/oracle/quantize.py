"""Quantize and dequantize a matrix of (rows, contraction), and any tensor by way of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from . import hadamard, layout, philox, rounding, scales
from .formats import ELEMENT, Spec

F32 = np.float32


@dataclass(frozen=True)
class Quantized:
    """`scale` has one entry a block, as a matrix; `tensor_scale` is None where there is none."""

    codes: np.ndarray
    scale: np.ndarray | None
    tensor_scale: np.float32 | None
    block: tuple[int, int]

    def operand(self) -> np.ndarray:
        """What a GEMM multiplies: everything but the scale of the tensor, in float32."""
        values = self.codes.astype(F32)
        if self.scale is None:
            return values
        with np.errstate(over="ignore", invalid="ignore"):
            return values * expand(self.scale.astype(F32), self.block, values.shape)

    def dequantize(self) -> np.ndarray:
        values = self.operand()
        with np.errstate(over="ignore", invalid="ignore"):
            return values if self.tensor_scale is None else values * self.tensor_scale


def expand(per_block: np.ndarray, block: tuple[int, int], shape: tuple[int, ...]) -> np.ndarray:
    """Repeat each block's entry over its elements, and crop what the padding added."""
    repeated = np.repeat(np.repeat(per_block, block[0], axis=0), block[1], axis=1)
    return repeated[: shape[0], : shape[1]]


def block_amax(x: np.ndarray, block: tuple[int, int]) -> np.ndarray:
    """max |x| of each block, block by block; NaN where it holds one."""
    rows, columns = (-(-n // b) for n, b in zip(x.shape, block, strict=True))
    out = np.empty((rows, columns), np.float32)
    for i in range(rows):
        for j in range(columns):
            tile = x[i * block[0] : (i + 1) * block[0], j * block[1] : (j + 1) * block[1]]
            out[i, j] = np.max(np.abs(tile))
    return out


def find_scales(x: np.ndarray, spec: Spec, block: tuple[int, int]):
    """(stored scale, multiplier, scale of the tensor) of a float32 matrix."""
    largest, _, _, largest_exponent = ELEMENT[spec.element]
    amax = block_amax(x, block)
    if spec.format == "nvfp4":
        whole = np.max(np.abs(x))
        stored, multiplier = scales.nvfp4(amax, whole)
        tensor_scale = scales.nvfp4_tensor_scale(whole)
        return stored, multiplier, tensor_scale if np.isfinite(whole) else F32(np.nan)
    if spec.format.startswith("mx"):
        if spec.scale == "floor":
            return *scales.e8m0(amax, lambda a: scales.exponent_floor(a, largest_exponent)), None
        return *scales.e8m0(amax, lambda a: scales.exponent_up(a, largest)), None
    rule = scales.fp32_power_of_two if spec.scale == "power_of_two" else scales.fp32
    stored, multiplier = rule(amax, largest)
    if spec.block is None:
        return None, multiplier, stored[0, 0]
    return stored, multiplier, None


def quantize_matrix(x: np.ndarray, spec: Spec, u: np.ndarray | None = None) -> Quantized:
    """`x` float32 (rows, contraction), rotated and padded already; `u` for stochastic rounding."""
    block = spec.block or x.shape
    stored, multiplier, tensor_scale = find_scales(x, spec, block)
    with np.errstate(over="ignore", invalid="ignore"):
        y = x * expand(multiplier, block, x.shape)
    if spec.rounding == "nearest":
        codes = rounding.nearest(y, spec.element)
    else:
        assert u is not None
        codes = rounding.stochastic(y, u, spec.element)
    return Quantized(codes, stored, tensor_scale, block)


def rotate_matrix(x: np.ndarray, spec: Spec, dtype: np.dtype) -> np.ndarray:
    """The matrix rotated along its contraction; of a bf16 input rounded once to bf16."""
    with np.errstate(over="ignore", invalid="ignore"):
        rotated = hadamard.rotate(x, spec.signs or hadamard.SIGNS_16)
    return scales.bfloat16(rotated) if dtype == scales.BF16 else rotated


def quantize_operand(
    x: np.ndarray,
    spec: Spec,
    contraction: tuple[int, ...],
    rows: tuple[int, ...] | None = None,
    key=None,
) -> Quantized:
    """Quantize a tensor of any shape and float dtype, as a matrix of (rows, contraction)."""
    contraction = tuple(a % x.ndim for a in contraction)
    matrix = layout.as_matrix(x, contraction, rows).astype(F32)
    if spec.rht:
        columns = (spec.block or (1, 1))[1]
        matrix = layout.pad_columns(matrix, max(spec.rht, columns))
        matrix = rotate_matrix(matrix, spec, x.dtype)
    u = None
    if spec.rounding == "stochastic":
        places = layout.places(x.shape, contraction, rows, matrix.shape[1])
        u = philox.uniform_at(*places, key, spec.bits)
    return quantize_matrix(matrix, spec, u)


def quantize(x: np.ndarray, spec: Spec, axis: int = -1, key=None) -> Quantized:
    return quantize_operand(x, spec, (axis,), key=key)

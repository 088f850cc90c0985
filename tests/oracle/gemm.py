"""The three matrix products of a linear layer, each operand quantized on its own.

Axes are named as `lax.dot_general` names them: ((lhs contracting, rhs contracting), (lhs batch,
rhs batch)); lhs is the input, rhs the weight, and the output has the axes (batch, free of lhs,
free of rhs). Products are taken in float64: against them a float32 sum is judged.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from . import layout, scales
from .formats import Spec
from .quantize import quantize_operand
from .scales import BF16

Axes = tuple[int, ...]


@dataclass(frozen=True)
class Layer:
    """The axes of a product's operands and of its output, by their part in it."""

    lhs_contract: Axes
    rhs_contract: Axes
    lhs_batch: Axes
    rhs_batch: Axes
    lhs_free: Axes
    rhs_free: Axes

    @property
    def out_axes(self) -> tuple[Axes, Axes, Axes]:
        """(batch, free of the input, free of the weight) of the output and of its gradient."""
        sizes = (len(self.lhs_batch), len(self.lhs_free), len(self.rhs_free))
        starts = (0, sizes[0], sizes[0] + sizes[1])
        batch, left, right = (tuple(range(a, a + n)) for a, n in zip(starts, sizes, strict=True))
        return batch, left, right


def layer(lhs: np.ndarray, rhs: np.ndarray, dimension_numbers) -> Layer:
    (lc, rc), (lb, rb) = (tuple(map(tuple, pair)) for pair in dimension_numbers)
    lhs_free = tuple(a for a in range(lhs.ndim) if a not in lc + lb)
    rhs_free = tuple(a for a in range(rhs.ndim) if a not in rc + rb)
    return Layer(lc, rc, lb, rb, lhs_free, rhs_free)


def operand(
    x: np.ndarray, spec: Spec | None, batch: Axes, free: Axes, contraction: Axes, key=None
) -> np.ndarray:
    """float64 (batch, rows, contraction) as the GEMM sees it, the scale of the tensor included.

    Without a spec: rounded to bfloat16 and no more. FP32 scales of fp8 blocks cost one more
    rounding to bfloat16, 2^-9 beside E4M3's 2^-4; the other formats are exact in it.
    """
    rows = (*batch, *free)
    if spec is None:
        matrix = layout.as_matrix(scales.bfloat16(x.astype(np.float32)), contraction, rows)
        matrix = matrix.astype(np.float64)
    else:
        q = quantize_operand(x, spec, contraction, rows, key)
        matrix = scales.bfloat16(q.operand()).astype(np.float64)
        matrix *= 1.0 if q.tensor_scale is None else np.float64(q.tensor_scale)
    return matrix.reshape(math.prod(x.shape[a] for a in batch), -1, matrix.shape[1])


def product(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """(batch, m, k) times (batch, n, k); zeros fill up the shorter of two padded contractions."""
    k = max(left.shape[2], right.shape[2])
    left, right = (np.pad(m, ((0, 0), (0, 0), (0, k - m.shape[2]))) for m in (left, right))
    return np.einsum("bmk,bnk->bmn", left, right)


def working(lhs: np.ndarray, other: np.ndarray) -> np.ndarray:
    """With a bf16 input, weight and gradient are rounded to bf16 before anything else."""
    return other.astype(BF16) if lhs.dtype == BF16 else other


def restore(result: np.ndarray, x: np.ndarray, order: Axes) -> np.ndarray:
    """A product whose axes, once split up, are those of `x` in `order`, in the order of x."""
    split = result.reshape([x.shape[a] for a in order])
    return np.transpose(split, np.argsort(np.asarray(order)))


def fprop(lhs, rhs, dimension_numbers, input=None, weight=None, keys=(None, None)):
    """y = x w in float64; `keys` hold two words for the input, and two for the weight."""
    at = layer(lhs, rhs, dimension_numbers)
    x = operand(lhs, input, at.lhs_batch, at.lhs_free, at.lhs_contract, keys[0])
    w = operand(working(lhs, rhs), weight, at.rhs_batch, at.rhs_free, at.rhs_contract, keys[1])
    shape = [lhs.shape[a] for a in (*at.lhs_batch, *at.lhs_free)]
    return product(x, w).reshape(*shape, *(rhs.shape[a] for a in at.rhs_free))


def dgrad(lhs, rhs, g, dimension_numbers, grad=None, weight=None, keys=(None, None)):
    """dx = dy w^T, contracting the free axes of the weight; keys of the gradient, the weight."""
    at = layer(lhs, rhs, dimension_numbers)
    batch, left, right = at.out_axes
    dy = operand(working(lhs, g), grad, batch, left, right, keys[0])
    w = operand(working(lhs, rhs), weight, at.rhs_batch, at.rhs_contract, at.rhs_free, keys[1])
    return restore(product(dy, w), lhs, (*at.lhs_batch, *at.lhs_free, *at.lhs_contract))


def wgrad(lhs, rhs, g, dimension_numbers, input=None, grad=None, keys=(None, None)):
    """dw = x^T dy, contracting the free axes of the input; keys of the input, the gradient."""
    at = layer(lhs, rhs, dimension_numbers)
    batch, left, right = at.out_axes
    x = operand(lhs, input, at.lhs_batch, at.lhs_contract, at.lhs_free, keys[0])
    dy = operand(working(lhs, g), grad, batch, right, left, keys[1])
    return restore(product(x, dy), rhs, (*at.rhs_batch, *at.rhs_contract, *at.rhs_free))

"""Any tensor as a matrix of (rows, contraction), and each element's place for its random bits.

Columns are the contraction axes in the order given; rows are the other axes, batch axes first.
Padding to whole rotations lengthens the contraction, with zeros.
"""

from __future__ import annotations

import math

import numpy as np

Axes = tuple[int, ...]


def as_matrix(x: np.ndarray, contraction: Axes, rows: Axes | None = None) -> np.ndarray:
    """`rows` left out: all the other axes, in order."""
    if rows is None:
        rows = tuple(a for a in range(x.ndim) if a not in contraction)
    shape = [math.prod(x.shape[a] for a in axes) for axes in (rows, contraction)]
    return np.transpose(x, (*rows, *contraction)).reshape(shape)


def pad_columns(matrix: np.ndarray, multiple: int) -> np.ndarray:
    return np.pad(matrix, ((0, 0), (0, -matrix.shape[1] % multiple)))


def from_matrix(matrix: np.ndarray, shape: Axes, axis: int) -> np.ndarray:
    """Undo `as_matrix` for one contraction axis, whose length may have grown or shrunk."""
    others = tuple(n for a, n in enumerate(shape) if a != axis % len(shape))
    return np.moveaxis(matrix.reshape(*others, matrix.shape[1]), -1, axis)


def places(
    shape: Axes, contraction: Axes, rows: Axes | None, length: int
) -> tuple[np.ndarray, np.ndarray]:
    """(row, column) of each entry of the matrix in the tensor flattened to its last axis.

    `length` is that of the contraction after padding. The tensor that counts is the one as
    passed; where a rotation pads it, the padded one, for its new elements need bits as well.
    """
    if length != math.prod(shape[a] for a in contraction):
        shape, contraction, rows = _padded(shape, contraction, rows, length)
    flat = np.arange(math.prod(shape), dtype=np.int64).reshape(shape)
    matrix = as_matrix(flat, contraction, rows)
    return matrix // shape[-1], matrix % shape[-1]


def _padded(shape: Axes, contraction: Axes, rows: Axes | None, length: int):
    """The shape, and its axes anew, with the neighbours that are contracted as one of `length`.

    A product without a contraction, such as the weight's gradient for a single token, contracts
    one axis of size 1: the tokens', just before the features.
    """
    if not contraction:
        last = len(shape) - 1
        rows = tuple(a if a < last else a + 1 for a in rows or range(len(shape)))
        return (*shape[:last], length, shape[last]), (last,), rows
    first, last = contraction[0], contraction[-1]
    assert contraction == tuple(range(first, last + 1)), "padding is defined for neighbours"
    if rows is not None:
        rows = tuple(a if a < first else a - last + first for a in rows)
    return (*shape[:first], length, *shape[last + 1 :]), (first,), rows

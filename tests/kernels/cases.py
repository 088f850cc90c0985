"""Tensors, copies, and what the oracle says of them; for the interpreter and for a GPU."""

from __future__ import annotations

import jax.numpy as jnp
import ml_dtypes
import numpy as np

from nvfp4_jax.kernels.launch import Copy
from tests.oracle import hadamard, scales
from tests.oracle.formats import Spec
from tests.oracle.layout import from_matrix
from tests.oracle.quantize import quantize_operand

BF16 = np.dtype(ml_dtypes.bfloat16)
KEYS = np.asarray([[0x12345678, 0x9ABCDEF0], [7, 0xFFFFFFFF]], np.uint32)
SIGNS = jnp.asarray(hadamard.SIGNS_16, jnp.float32)
START = np.zeros(3, np.uint32)

ROW_WISE = Copy("columns")
COLUMN_WISE = Copy("rows")
ROTATED = Copy("rows", rht=True)
TILES = Copy("columns", square=True)


def stochastic(copy: Copy, bits: int = 8) -> Copy:
    return Copy(copy.axis, copy.square, copy.rht, bits)


def spec(copy: Copy) -> Spec:
    """The same in the oracle's words."""
    return Spec(
        granularity="16x16" if copy.square else "1x16",
        rounding="stochastic" if copy.bits else "nearest",
        bits=copy.bits or 8,
        rht=16 if copy.rht else 0,
        signs=hadamard.SIGNS_16 if copy.rht else None,
    )


def expected(x: np.ndarray, copy: Copy, key: np.ndarray):
    """The oracle's quantization of (batch, rows, columns), rows of its matrix in order."""
    return quantize_operand(x, spec(copy), (2 if copy.axis == "columns" else 1,), key=key)


def expected_operand(x: np.ndarray, copy: Copy, key: np.ndarray) -> np.ndarray:
    """Value times block scale in bf16, shaped as the tensor."""
    matrix = expected(x, copy, key).operand().astype(BF16)
    return from_matrix(matrix, x.shape, 2 if copy.axis == "columns" else 1)


def expected_amax(x: np.ndarray, copy: Copy) -> np.ndarray:
    """The bits of the largest magnitude, of the rotation for a rotated copy."""
    v = x.astype(np.float32)
    if copy.rht:
        axis = 2 if copy.axis == "columns" else 1
        v = np.moveaxis(v, axis, -1)
        v = np.pad(v, [(0, 0), (0, 0), (0, -v.shape[-1] % 16)])
        with np.errstate(all="ignore"):
            v = hadamard.rotate(v, hadamard.SIGNS_16)
        v = scales.bfloat16(v) if x.dtype == BF16 else v
    return np.max(np.abs(v)).view(np.int32)


def tensor(kind: str, shape: tuple[int, ...], dtype=BF16, seed: int = 0) -> np.ndarray:
    """A tensor that a quantizer may find hard, by name."""
    random = np.random.default_rng(seed)
    x = random.standard_normal(shape)
    if kind == "wide":  # elements from far below a block's unit to its top
        x = x * np.exp2(random.integers(-24, 3, shape))
    elif kind == "blocks":  # blocks whose scale is subnormal or zero, and some of zeros
        place = np.add.outer(np.arange(shape[1]) // 16, np.arange(shape[2]) // 16)
        x = x * np.exp2(-7.0 * (place % 6)) * (place % 5 != 4)
    elif kind == "tiny":
        x = x * 1e-36
    elif kind == "huge":
        x = np.clip(x / 4, -1, 1) * 2e38
    elif kind == "zero":
        x = x * 0
    else:
        assert kind == "normal", kind
    return x.astype(np.float32).astype(dtype)


def bits(x) -> np.ndarray:
    """Bytes, to compare NaN and the sign of zero as well."""
    x = np.asarray(x)
    return x.view({1: np.uint8, 2: np.uint16, 4: np.uint32}[x.dtype.itemsize])

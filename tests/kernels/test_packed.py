"""Codes and scales at their stored size, and back."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from nvfp4_jax.kernels.launch import Copy

from .cases import (
    BF16,
    COLUMN_WISE,
    KEYS,
    ROTATED,
    ROW_WISE,
    SIGNS,
    START,
    TILES,
    bits,
    expected,
    stochastic,
    tensor,
)

F32 = np.float32
COPIES = [
    stochastic(ROW_WISE),
    COLUMN_WISE,
    stochastic(ROTATED, 16),
    TILES,
    Copy("rows", square=True),
    Copy("columns", rht=True),
]


def packed(launch, x, copy):
    x, keys = jnp.asarray(x), jnp.asarray(KEYS[:1])
    amax = launch.amax_bits(x, (copy,), SIGNS)
    arguments = (amax, SIGNS, keys, jnp.asarray(START), x.shape[1])
    (operand,) = launch.operands(x, (copy,), *arguments)
    return launch.packed(x, copy, *arguments), operand


@pytest.mark.parametrize("copy", COPIES, ids=str)
@pytest.mark.parametrize(("shape", "dtype"), [((2, 35, 72), BF16), ((1, 3, 5), F32)])
def test_unpacked_they_are_the_operand(interpreted, shape, dtype, copy):
    (codes, scales), operand = packed(interpreted, tensor("blocks", shape, dtype), copy)
    got = interpreted.unpacked(codes, scales, operand.shape, copy)
    np.testing.assert_array_equal(bits(got), bits(operand))


@pytest.mark.parametrize("copy", COPIES, ids=str)
def test_they_are_the_oracles(interpreted, copy):
    """Two codes a byte along the contraction, the even one low; padding has the code of zero."""
    x = tensor("blocks", (1, 35, 72))
    (codes, scales), _ = packed(interpreted, x, copy)
    want = expected(x, copy, KEYS[0])
    codes, scales = np.asarray(codes)[0], bits(scales)[0]
    if copy.axis == "rows":
        codes, scales = codes.T, scales.T
    nibbles = np.stack([codes & 15, codes >> 4], -1).reshape(len(codes), -1)
    rows, columns = want.codes.shape
    np.testing.assert_array_equal(nibbles[:, :columns], want.codes.view(np.uint8) & 15)
    assert not nibbles[:, columns:].any()
    assert len(nibbles) == rows
    assert nibbles.shape[1] == -(-columns // 16) * 16
    np.testing.assert_array_equal(scales, bits(want.scale))


def test_the_wrong_shape_is_refused(interpreted):
    (codes, scales), _ = packed(interpreted, tensor("normal", (1, 16, 32)), ROW_WISE)
    with pytest.raises(ValueError, match="expected"):
        interpreted.unpacked(codes, scales, (1, 16, 48), ROW_WISE)

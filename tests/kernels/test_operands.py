"""Operands, bit for bit, against the oracle: every copy, rounding and awkward shape."""

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
    expected_operand,
    stochastic,
    tensor,
)

F32 = np.float32
ROTATED_ROW_WISE = Copy("columns", rht=True)


def operands(launch, x, copies, start=START, rows=None, amax=None, **kwargs):
    x, keys = jnp.asarray(x), jnp.asarray(KEYS[: len(copies)])
    amax = launch.amax_bits(x, copies, SIGNS, **kwargs) if amax is None else amax
    rows = x.shape[1] if rows is None else rows
    return launch.operands(x, copies, amax, SIGNS, keys, jnp.asarray(start), rows, **kwargs)


@pytest.mark.parametrize(
    ("kind", "shape", "dtype", "copies"),
    [
        ("wide", (2, 35, 72), BF16, (stochastic(ROW_WISE), stochastic(ROTATED))),
        ("normal", (1, 17, 101), BF16, (ROW_WISE, ROTATED)),
        ("wide", (1, 17, 101), BF16, (ROW_WISE, stochastic(COLUMN_WISE))),
        ("wide", (2, 35, 72), F32, (stochastic(ROW_WISE, 16), stochastic(ROTATED, 32))),
        ("wide", (2, 18, 40), F32, (ROTATED_ROW_WISE,)),
        ("blocks", (1, 48, 80), BF16, (stochastic(ROW_WISE, 32), stochastic(COLUMN_WISE, 16))),
        ("blocks", (1, 48, 80), F32, (ROW_WISE, COLUMN_WISE)),
        ("blocks", (2, 32, 48), BF16, (TILES, stochastic(TILES))),
        ("normal", (1, 20, 37), F32, (Copy("rows", square=True),)),
        ("wide", (3, 5, 23), BF16, (stochastic(ROTATED_ROW_WISE),)),
        ("normal", (3, 1, 5), BF16, (stochastic(ROW_WISE), COLUMN_WISE)),
        ("normal", (1, 1, 1), F32, (ROTATED,)),
        ("tiny", (1, 16, 32), F32, (ROW_WISE, stochastic(ROTATED))),
        ("huge", (1, 16, 32), F32, (ROW_WISE, stochastic(COLUMN_WISE))),
        ("zero", (1, 16, 32), BF16, (stochastic(ROW_WISE), stochastic(ROTATED))),
    ],
    ids=str,
)
def test_the_bits_are_the_oracles(interpreted, kind, shape, dtype, copies):
    x = tensor(kind, shape, dtype)
    for got, copy, key in zip(operands(interpreted, x, copies), copies, KEYS, strict=False):
        np.testing.assert_array_equal(bits(got), bits(expected_operand(x, copy, key)), str(copy))


def test_a_master_weight_is_rounded_as_it_is_read(interpreted):
    x = tensor("wide", (1, 33, 40), F32)
    copies = (stochastic(TILES), ROTATED)
    got = operands(interpreted, x, copies, round_to_bf16=True)
    for array, copy, key in zip(got, copies, KEYS, strict=True):
        want = expected_operand(x.astype(BF16), copy, key)
        np.testing.assert_array_equal(bits(array), bits(want))


@pytest.mark.parametrize("at", [(1, 0, 0), (0, 16, 0), (0, 0, 32), (1, 16, 32)])
def test_a_shard_draws_the_bits_of_its_place(interpreted, at):
    """Rows that a rotation pads count in every batch entry before this one."""
    copies = (stochastic(ROW_WISE, 16), stochastic(ROTATED))
    x = tensor("normal", (2, 40, 64))
    amax = interpreted.amax_bits(jnp.asarray(x), copies, SIGNS)
    whole = operands(interpreted, x, copies, amax=amax)
    batch, row, column = at
    part = x[batch:, row:, column:]
    shard = operands(interpreted, part, copies, np.asarray(at, np.uint32), 40, amax)
    for got, want in zip(shard, whole, strict=True):
        np.testing.assert_array_equal(bits(got), bits(want[batch:, row:, column:]))


def test_the_other_copy_draws_other_bits(interpreted):
    copy = stochastic(ROW_WISE)
    first, second = operands(interpreted, tensor("normal", (1, 16, 64)), (copy, copy))
    assert np.any(bits(first) != bits(second))


def test_nothing_traps_where_the_tensor_is_not_finite(interpreted):
    x = tensor("normal", (1, 16, 32))
    x[0, 3, 4], x[0, 9, 9] = np.nan, np.inf
    for array in operands(interpreted, x, (stochastic(ROW_WISE), ROTATED)):
        assert array.shape == x.shape


@pytest.mark.parametrize(
    ("shape", "dtype", "copies", "words"),
    [
        ((1, 0, 4), F32, (ROW_WISE,), "empty"),
        ((1, 4, 4), np.float16, (ROW_WISE,), "bf16 or float32"),
        ((1, 4, 4), F32, (ROW_WISE,) * 3, "3 copies"),
        ((1, 4, 4), F32, (Copy("rows", bits=4),), "bits = 4"),
    ],
)
def test_what_cannot_be_done_is_refused(interpreted, shape, dtype, copies, words):
    with pytest.raises(ValueError, match=words):
        operands(interpreted, np.ones(shape, dtype), copies)

"""The largest magnitude, of a tensor and of its rotation."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from nvfp4_jax.kernels.launch import Copy

from .cases import BF16, COLUMN_WISE, ROTATED, ROW_WISE, SIGNS, expected_amax, tensor

F32 = np.float32
ROTATED_ROW_WISE = Copy("columns", rht=True)


@pytest.mark.parametrize("copies", [(ROW_WISE,), (ROW_WISE, COLUMN_WISE), (ROW_WISE, ROTATED)])
@pytest.mark.parametrize(
    ("kind", "shape", "dtype"),
    [
        ("wide", (2, 35, 72), BF16),
        ("normal", (1, 17, 101), BF16),
        ("tiny", (1, 3, 3), F32),
        ("zero", (2, 1, 40), BF16),
    ],
)
def test_it_is_the_oracles(interpreted, kind, shape, dtype, copies):
    x = tensor(kind, shape, dtype)
    got = interpreted.amax_bits(jnp.asarray(x), copies, SIGNS)
    np.testing.assert_array_equal(got, [expected_amax(x, copy) for copy in copies])


def test_two_rotations(interpreted):
    x = tensor("normal", (1, 33, 50), F32)
    copies = (ROTATED_ROW_WISE, ROTATED)
    got = interpreted.amax_bits(jnp.asarray(x), copies, SIGNS)
    np.testing.assert_array_equal(got, [expected_amax(x, copy) for copy in copies])


@pytest.mark.parametrize("copies", [(ROW_WISE,), (ROW_WISE, ROTATED), (ROTATED_ROW_WISE,)])
def test_of_a_master_weight_it_is_that_of_its_rounding(interpreted, copies):
    x = tensor("normal", (1, 20, 50), F32)
    got = interpreted.amax_bits(jnp.asarray(x), copies, SIGNS, round_to_bf16=True)
    np.testing.assert_array_equal(got, [expected_amax(x.astype(BF16), copy) for copy in copies])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("copies", [(ROW_WISE,), (ROW_WISE, ROTATED)])
def test_what_is_not_finite_survives(interpreted, bad, copies):
    x = tensor("normal", (1, 20, 50))
    x[0, 7, 11] = bad
    got = np.asarray(interpreted.amax_bits(jnp.asarray(x), copies, SIGNS))
    assert np.all(got >= np.float32(np.inf).view(np.int32))


def test_a_rotation_that_overflows_is_infinite(interpreted):
    x = np.full((1, 16, 16), 3e38, F32) * np.asarray(SIGNS)[:, None]
    got = interpreted.amax_bits(jnp.asarray(x), (ROW_WISE, ROTATED), SIGNS)
    assert got[0] == np.float32(3e38).view(np.int32)
    assert got[1] >= np.float32(np.inf).view(np.int32)

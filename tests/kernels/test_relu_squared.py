"""relu(u)^2 and its gradient with their amaxes: the bits of the one after the other."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from nvfp4_jax.kernels import relu_squared
from nvfp4_jax.kernels.launch import Copy

from .cases import BF16, COLUMN_WISE, ROTATED, ROW_WISE, SIGNS, expected_amax, stochastic, tensor

F32 = np.float32
COPIES = ((ROW_WISE, ROTATED), (ROW_WISE, COLUMN_WISE), (Copy("columns", rht=True),), (ROW_WISE,))


def defined(u: np.ndarray, dr: np.ndarray | None) -> np.ndarray:
    """In float32, rounded once."""
    with np.errstate(all="ignore"):
        wide = np.maximum(u.astype(F32), F32(0))
        return (wide * wide if dr is None else F32(2) * wide * dr.astype(F32)).astype(BF16)


def check(u, dr, copies):
    given = (jnp.asarray(u), None if dr is None else jnp.asarray(dr))
    out, amax = relu_squared.relu_squared(*given, copies, SIGNS)
    want = defined(u, dr)
    np.testing.assert_array_equal(np.asarray(out).astype(F32), want.astype(F32))
    top = [expected_amax(want, copy) for copy in copies]
    if np.isnan(want.astype(F32)).any():
        assert np.isnan(np.asarray(amax).view(F32)).all()
    else:
        np.testing.assert_array_equal(amax, top)


@pytest.mark.parametrize("gradient", [False, True], ids=["value", "gradient"])
@pytest.mark.parametrize("copies", COPIES, ids=str)
@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        ("wide", (1, 35, 72)),
        ("normal", (1, 17, 101)),
        ("normal", (2, 16, 48)),
        ("tiny", (1, 3, 3)),
        ("zero", (1, 1, 40)),
    ],
)
def test_the_bits_are_the_definitions(interpreted, kind, shape, copies, gradient):
    dr = tensor(kind, shape, seed=1) if gradient else None
    check(tensor(kind, shape), dr, copies)


@pytest.mark.parametrize("gradient", [False, True], ids=["value", "gradient"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, 3e38])
def test_what_is_not_finite_survives(interpreted, bad, gradient):
    """A square that overflows, NaN, and infinity times zero."""
    u, dr = tensor("normal", (1, 20, 50)), tensor("normal", (1, 20, 50), seed=1)
    u[0, 7, 11] = bad
    u[0, 8, 12], dr[0, 8, 12] = -1, bad
    check(u, dr if gradient else None, (ROW_WISE,))
    _, amax = relu_squared.relu_squared(
        jnp.asarray(u), jnp.asarray(dr) if gradient else None, (ROW_WISE, ROTATED), SIGNS
    )
    assert np.all(np.asarray(amax) >= F32(np.inf).view(np.int32))


def test_random_bits_of_the_copies_do_not_matter(interpreted):
    u = jnp.asarray(tensor("normal", (1, 32, 64)))
    plain = relu_squared.relu_squared(u, None, (ROW_WISE, ROTATED), SIGNS)
    noisy = relu_squared.relu_squared(u, None, (stochastic(ROW_WISE), stochastic(ROTATED)), SIGNS)
    for a, b in zip(plain, noisy, strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def test_what_it_cannot_do_raises(interpreted):
    u = jnp.ones((1, 16, 16), jnp.float32)
    with pytest.raises(ValueError, match="is for bf16: u is float32"):
        relu_squared.relu_squared(u, None, (ROW_WISE,), SIGNS)
    u = u.astype(jnp.bfloat16)
    with pytest.raises(ValueError, match=r"its gradient bfloat16 of \(1, 16, 8\)"):
        relu_squared.relu_squared(u, u[:, :, :8], (ROW_WISE,), SIGNS)

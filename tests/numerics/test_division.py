"""Division repaired: any quotient within two units in the last place becomes IEEE's."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify

from nvfp4_jax.division import correct_quotient, divide


def random_floats(rng, count: int, exponents: tuple[int, int]) -> np.ndarray:
    """Uniform mantissas, some of them at an edge, under uniform exponents."""
    mantissa = rng.integers(0, 2**23, count, dtype=np.uint32)
    edges = np.asarray([0, 1, 2, 2**22 - 1, 2**22, 2**22 + 1, 2**23 - 2, 2**23 - 1], np.uint32)
    mantissa = np.where(rng.random(count) < 0.2, rng.choice(edges, count), mantissa)
    exponent = rng.integers(exponents[0] + 127, exponents[1] + 127, count).astype(np.uint32)
    return (exponent << np.uint32(23) | mantissa).view(np.float32)


def edge_pairs() -> tuple[np.ndarray, np.ndarray]:
    """All pairs of mantissas next to 1, 1.5 and 2: quotients next to a power of two."""
    offsets = np.arange(-40, 41)
    near = np.concatenate(
        [(np.float32(v).view(np.int32) + offsets).astype(np.int32) for v in (1, 1.5, 2, 2.75)]
    ).view(np.float32)
    x, y = np.meshgrid(near, near)
    return x.reshape(-1), y.reshape(-1)


@jax.jit
def repaired(q, x, y):
    """As `divide` does it: twice."""
    return correct_quotient(correct_quotient(q, x, y), x, y)


def pairs(kind: str) -> tuple[np.ndarray, np.ndarray]:
    if kind == "edges":
        return edge_pairs()
    rng = np.random.default_rng(7)
    return random_floats(rng, 10**6, (-60, 60)), random_floats(rng, 10**6, (-60, 60))


@pytest.mark.parametrize("kind", ["random", "edges"])
def test_an_error_of_up_to_two_ulp_is_repaired(kind):
    x, y = pairs(kind)
    exact = x / y
    for error in (-2, -1, 0, 1, 2):
        wrong = (exact.view(np.int32) + np.int32(error)).view(np.float32)
        np.testing.assert_array_equal(repaired(wrong, x, y), exact, err_msg=f"{error} ulp")


def test_one_application_is_not_enough_for_two_ulp():
    """So that the two in `divide` are known to be needed."""
    x, y = pairs("random")
    wrong = ((x / y).view(np.int32) + 2).view(np.float32)
    assert np.any(np.asarray(correct_quotient(*map(jnp.asarray, (wrong, x, y)))) != x / y)


@pytest.mark.parametrize("kind", ["random", "edges"])
def test_divide_is_ieee_division(kind):
    x, y = pairs(kind)
    np.testing.assert_array_equal(jax.jit(divide)(x, y), x / y)
    np.testing.assert_array_equal(jax.jit(divide)(np.float32(2688), y), np.float32(2688) / y)


def test_the_ends_of_the_range():
    largest = np.finfo(np.float32).max
    ends = np.asarray([0, 2.0**-126, 1, largest, np.inf, np.nan], np.float32)
    x, y = (a.reshape(-1) for a in np.meshgrid(ends, ends))
    with np.errstate(all="ignore"):
        expected = x / y
    normal = (expected == 0) | ~(np.abs(expected) < 2.0**-126)  # a CPU's XLA flushes the others
    actual = np.asarray(jax.jit(divide)(x, y))
    np.testing.assert_array_equal(actual[normal], expected[normal])


def test_one_divisor_for_all_is_no_product_with_its_reciprocal():
    """What XLA makes of a plain division here; it is wrong for many of these."""
    x, divisors = random_floats(np.random.default_rng(7), 4096, (0, 1)), edge_pairs()[0][:81:8]

    def plain(x, y):
        return x / jnp.full(x.shape, y)

    def ours(x, y):
        return divide(x, jnp.full(x.shape, y))

    wrong = sum(np.sum(jax.jit(plain)(x, y) != x / y) for y in divisors)
    assert wrong > 0
    for y in divisors:
        np.testing.assert_array_equal(jax.jit(ours)(x, y), x / y)


def test_scales_have_no_gradient_on_any_backend():
    x, y = jnp.float32(2), jnp.float32(3)
    assert jax.grad(divide, (0, 1))(x, y) == (0, 0)


def test_checks_of_every_division_find_nothing_of_64_bits():
    """Else they would warn that float64 is truncated, which is an error in these tests."""
    checked = checkify.checkify(jax.jit(divide), errors=checkify.all_checks)
    error, quotient = checked(jnp.float32(2), jnp.float32(3))
    error.throw()
    assert float(quotient) == np.float32(2) / np.float32(3)

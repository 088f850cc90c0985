"""The tests for a Blackwell, which we do not have, run here on a stand-in for its kernels."""

from __future__ import annotations

import jax.numpy as jnp
import pytest

from tests.gpu import test_blackwell as suite
from tests.sharding.test_native import on_a_blackwell  # noqa: F401, a fixture that is in force


@pytest.mark.parametrize("name", suite.REQUESTS)
def test_codes(name):
    suite.test_codes_and_scales_are_the_definitions(name, (37, 50))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_products(dtype):
    suite.test_a_product_whose_sums_are_exact(dtype, (50, 24, 40))


def test_a_linear():
    suite.test_a_linear_is_the_emulated_one((50, 24, 40))

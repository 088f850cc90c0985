"""Flax's own layers promote dtypes implicitly, so these tests let them."""

from __future__ import annotations

import jax
import pytest


@pytest.fixture(autouse=True)
def standard_promotion():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield

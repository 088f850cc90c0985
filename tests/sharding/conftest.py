"""Fixtures: what takes a GPU's place on a CPU."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from nvfp4_jax.kernels import (
    available,
    capability,
    hopper_gemm,
    launch,
    relu_squared,
    scaled_product,
    views,
)
from tests.sharding import standin


@pytest.fixture
def on_a_gpu(monkeypatch):
    """As if this machine had an H100, whose kernels are the stand-in."""
    for name in ("amax_bits", "operands", "packed", "unpacked"):
        monkeypatch.setattr(launch, name, getattr(standin, name), raising=False)
    monkeypatch.setattr(relu_squared, "relu_squared", standin.relu_squared)
    for module in (capability, available, views):
        monkeypatch.setattr(module, "capability", lambda: (9, 0))


@pytest.fixture
def products_on_a_cpu(monkeypatch):
    """FP32 products of the same values: a CPU has no Hopper kernel, nor every bf16 product."""
    monkeypatch.setattr(hopper_gemm, "unsupported", lambda *_: "there is no Hopper GPU here")

    def sums(contract, a, b, dtype=jnp.float32):
        numbers = ((contract[:1], contract[1:]), ((), ()))
        a, b = a.astype(jnp.float32), b.astype(jnp.float32)
        exact = jax.lax.dot_general(a, b, numbers, precision=jax.lax.Precision.HIGHEST)
        return exact.astype(dtype)

    monkeypatch.setattr(scaled_product, "_sums", sums)

"""The three products of one layer, from the package and from the oracle."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import nvfp4_jax as nvfp4
from nvfp4_jax import LinearPrecision, Quantizer
from tests.numerics.compare import spec_of, words
from tests.oracle import gemm as oracle

GEMMS = {"fprop": ("input", "weight"), "dgrad": ("grad", "weight"), "wgrad": ("input", "grad")}
OPERANDS = ("input", "weight", "grad")
# FP32 sums of some 50 products differ from exact ones by a few 2^-24 = 6e-8 of the sum's norm.
TOLERANCE = 1e-6


@functools.cache
def compiled(precision: LinearPrecision, dimension_numbers, dtype):
    """Jitted (lhs, rhs, gradient of the output, key) -> (y, dx, dw)."""

    def run(lhs, rhs, g, key):
        dot_general = nvfp4.make_dot_general(precision, key)

        def forward(lhs, rhs):
            return dot_general(lhs, rhs, dimension_numbers, preferred_element_type=dtype)

        y, vjp = jax.vjp(forward, lhs, rhs)
        return (y, *vjp(g.astype(y.dtype)))

    return jax.jit(run)


def from_package(precision, lhs, rhs, g, dimension_numbers, key, dtype=None):
    return compiled(precision, dimension_numbers, dtype)(lhs, rhs, g, key)


def from_oracle(precision, lhs, rhs, g, dimension_numbers, key):
    """(y, dx, dw) in float64."""
    parts = [gemm_arguments(precision, name, key) for name in GEMMS]
    x, w, dy = (np.asarray(a) for a in (lhs, rhs, g))
    return (
        oracle.fprop(x, w, dimension_numbers, **parts[0]),
        oracle.dgrad(x, w, dy, dimension_numbers, **parts[1]),
        oracle.wgrad(x, w, dy, dimension_numbers, **parts[2]),
    )


def gemm_arguments(precision: LinearPrecision, gemm: str, key) -> dict[str, Any]:
    """Both specs of a GEMM and the words of both keys: the layer's, folded with GEMM, operand."""
    gemm_key = jax.random.fold_in(key, list(GEMMS).index(gemm))
    specs: dict[str, Any] = {}
    keys = []
    for operand in GEMMS[gemm]:
        quantizer = getattr(getattr(precision, gemm), operand)
        quantized = isinstance(quantizer, Quantizer)
        specs[operand] = spec_of(quantizer, gemm_key) if quantized else None
        keys.append(words(jax.random.fold_in(gemm_key, OPERANDS.index(operand))))
    return {**specs, "keys": tuple(keys)}


def error(actual, expected: np.ndarray) -> float:
    """|actual - expected| / |expected|, by norm."""
    actual = np.asarray(actual).astype(np.float64)
    assert actual.shape == expected.shape
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


def assert_products(actual, expected):
    """FP32 results to TOLERANCE; bf16 ones to one rounding, 2^-9 of each element at most."""
    for name, a, e in zip(("y", "dx", "dw"), actual, expected, strict=True):
        tolerance = TOLERANCE if a.dtype == jnp.float32 else 2.0**-9
        assert error(a, e) < tolerance, f"{name}: {error(a, e):.2e}"

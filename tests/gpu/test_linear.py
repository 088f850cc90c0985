"""A linear layer through the fused kernels: the bits of its operands, and its three products."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nvfp4_jax as nvfp4
from nvfp4_jax import Quantizer, hadamard
from nvfp4_jax.kernels import fused, xla
from nvfp4_jax.kernels.request import Request
from tests.gemm.precisions import PAPER, PRECISIONS

KEY = jax.random.key(5)
SHAPES = (
    ((64, 128), (128, 192)),
    ((37, 50), (50, 70)),
    ((4, 256, 320), (320, 64)),
    ((1024, 2048), (2048, 1024)),
    ((4096, 1280), (1280, 5120)),
)


def numbers(lhs, rhs):
    return (((len(lhs) - 1,), (0,)), ((), ()))


def run(precision, implementation, lhs, rhs, dy):
    @jax.jit
    def products(lhs, rhs, dy):
        dot_general = nvfp4.make_dot_general(precision, KEY, implementation)
        y, vjp = jax.vjp(lambda a, b: dot_general(a, b, numbers(lhs.shape, rhs.shape)), lhs, rhs)
        return (y, *vjp(dy))

    return products(lhs, rhs, dy)


@pytest.mark.parametrize(("lhs", "rhs"), SHAPES, ids=str)
@pytest.mark.parametrize("name", ["paper", "rows", "bf16", "mxfp4"])
@pytest.mark.parametrize("residuals", ["bf16", "packed"])
def test_products_agree_with_the_definition(lhs, rhs, name, residuals):
    """FP32 sums in another order: what is rounded to bf16 differs by one rounding at most."""
    if name == "bf16" and residuals == "packed":
        precision = PRECISIONS["paper"]
    else:
        precision = PRECISIONS[name] if name != "paper" else PAPER
    if precision.wgrad.input != "bf16":
        precision = nvfp4.LinearPrecision(
            precision.fprop, precision.dgrad, precision.wgrad, residuals=residuals
        )
    keys = jax.random.split(jax.random.key(len(lhs)), 3)
    x = jax.random.normal(keys[0], lhs, jnp.bfloat16)
    w = jax.random.normal(keys[1], rhs, jnp.float32)
    dy = jax.random.normal(keys[2], (*lhs[:-1], rhs[1]), jnp.bfloat16) * 1e-3
    got, expected = run(precision, None, x, w, dy), run(precision, "xla", x, w, dy)
    for name, a, b in zip(("y", "dx", "dw"), got, expected, strict=True):
        a, b = (np.asarray(v).astype(np.float64) for v in (a, b))
        tolerance = 1e-6 if name == "dw" else 2.0**-8
        assert np.linalg.norm(a - b) <= tolerance * np.linalg.norm(b), name


@pytest.mark.parametrize("shape", [(64, 128), (37, 50), (3, 40, 70), (2048, 4096)], ids=str)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_operands_have_the_bits_of_the_definition(shape, dtype):
    x = jax.random.normal(jax.random.key(1), shape, dtype)
    signs = hadamard.fixed_signs()
    noisy = Quantizer(rounding="stochastic")
    pairs = (
        [Request(Quantizer(), -1), Request(Quantizer(rht=16), -2, None, signs)],
        [
            Request(noisy, -1, jax.random.key(2)),
            Request(Quantizer(rht=16, rounding="stochastic"), -2, jax.random.key(3), signs),
        ],
        [Request(Quantizer(granularity="16x16"), -1)],
    )
    for asked in pairs:
        fast = jax.jit(lambda x, asked=asked: fused.to_operands(x, asked))(x)
        slow = jax.jit(lambda x, asked=asked: xla.to_operands(x, asked))(x)
        for a, b in zip(jax.tree.leaves(fast), jax.tree.leaves(slow), strict=True):
            np.testing.assert_array_equal(
                np.asarray(a).astype(np.float32), np.asarray(b).astype(np.float32)
            )

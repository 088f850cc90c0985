"""Fprop, Dgrad and Wgrad are the oracle's three products, to 1e-6 by norm."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nvfp4_jax as nvfp4
from tests.oracle import gemm as oracle

from .precisions import LAYOUTS, PAPER, PLAIN, PRECISIONS, ROW, SEVERAL, numbers, same
from .products import TOLERANCE, assert_products, error, from_oracle, from_package

KEY = jax.random.key(99)
DTYPES = {
    "float32": (jnp.float32, jnp.float32),
    "bfloat16": (jnp.bfloat16, jnp.float32),
    "all bfloat16": (jnp.bfloat16, jnp.bfloat16),
}


def operands(layout, dtypes: str = "float32"):
    """lhs, rhs, and the gradient of the output, which has the input's dtype."""
    lhs_shape, rhs_shape, axes = layout
    lhs, rhs = (
        jnp.asarray(numbers(s, i), d)
        for i, (s, d) in enumerate(zip((lhs_shape, rhs_shape), DTYPES[dtypes], strict=True))
    )
    shape = jax.eval_shape(lambda a, b: jax.lax.dot_general(a, b, axes), lhs, rhs.astype(lhs.dtype))
    return lhs, rhs, jnp.asarray(numbers(shape.shape, 2), lhs.dtype), axes


def check(precision: str, layout, dtypes: str = "float32"):
    arguments = operands(layout, dtypes)
    actual = from_package(PRECISIONS[precision], *arguments, KEY)
    assert [a.dtype for a in actual] == [arguments[0].dtype, *(a.dtype for a in arguments[:2])]
    assert_products(actual, from_oracle(PRECISIONS[precision], *arguments, KEY))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_precision_at_a_ragged_size(precision):
    check(precision, PLAIN)


@pytest.mark.parametrize("precision", ["paper", "bf16", "fp8", "mixed"])
def test_a_bf16_input(precision):
    check(precision, PLAIN, "bfloat16")


@pytest.mark.parametrize("precision", ["bf16", "mxfp4"])
def test_a_weight_in_bf16_as_well(precision):
    check(precision, PLAIN, "all bfloat16")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout(layout):
    check("lean", LAYOUTS[layout])


@pytest.mark.parametrize("precision", ["mxfp4", "bf16"])
@pytest.mark.parametrize("layout", SEVERAL)
def test_several_axes_of_a_kind(layout, precision):
    check(precision, SEVERAL[layout])


def test_the_preferred_element_type_is_the_results():
    """FP32 out of bf16 operands, and the gradient that comes back in FP32 rounded to bf16."""
    lhs, rhs, g, axes = operands(PLAIN, "bfloat16")
    g = jnp.asarray(numbers(g.shape, 5))
    actual = from_package(PAPER, lhs, rhs, g, axes, KEY, dtype=jnp.float32)
    assert [a.dtype for a in actual] == [jnp.float32, jnp.bfloat16, jnp.float32]
    assert_products(actual, from_oracle(PAPER, lhs, rhs, g, axes, KEY))


def test_a_weights_gradient_is_never_rounded_to_bf16():
    lhs, rhs, g, axes = operands(PLAIN, "bfloat16")
    _, _, dw = from_package(PAPER, lhs, rhs, g, axes, KEY)
    assert dw.dtype == jnp.float32
    assert np.mean(np.asarray(dw) == np.asarray(dw.astype(jnp.bfloat16), np.float32)) < 0.1


def test_a_bf16_input_sees_the_bf16_cast_of_the_weight():
    """The codes of the FP32 weight and those of its cast differ; the second are wanted."""
    lhs, rhs, _, axes = operands(PLAIN, "bfloat16")
    dot_general = jax.jit(
        lambda lhs, rhs: nvfp4.make_dot_general(PRECISIONS["rows"])(
            lhs, rhs, axes, preferred_element_type=jnp.float32
        )
    )
    mixed, cast = dot_general(lhs, rhs), dot_general(lhs, rhs.astype(jnp.bfloat16))
    np.testing.assert_array_equal(mixed, cast)
    spec = from_oracle(PRECISIONS["rows"], lhs.astype(jnp.float32), rhs, mixed, axes, KEY)[0]
    assert error(mixed, spec) > 1e-3


def test_all_three_quantize_from_high_precision():
    """Dgrad's weight quantized from Fprop's quantized weight would be another product."""
    lhs, rhs, g, axes = operands(PLAIN)
    rows = PRECISIONS["rows"]
    _, dx, _ = from_package(rows, lhs, rhs, g, axes, KEY)
    again = jnp.asarray(nvfp4.qdq(rhs, ROW, axis=0))
    twice = from_oracle(rows, lhs, again, g, axes, KEY)[1]
    assert error(dx, twice) > 1e-3


def test_a_rotation_cancels_in_the_product():
    """Quantized to eight bits with and without a rotation, dw is the same but for rounding."""
    lhs, rhs, g, axes = operands(PLAIN)
    exact = np.asarray(lhs, np.float64).T @ np.asarray(g, np.float64)
    fine = nvfp4.Quantizer("mxfp8_e4m3", rht=16)
    precision = nvfp4.LinearPrecision(wgrad=nvfp4.Gemm(input=fine, grad=fine))
    assert error(from_package(precision, lhs, rhs, g, axes, KEY)[2], exact) < 2.0**-4


def test_an_nvfp4_product_is_not_a_bf16_product():
    """The quantized product is 2 to 20% away from the exact one: quantization does happen."""
    lhs, rhs, g, axes = operands(PLAIN)
    exact = oracle.fprop(np.asarray(lhs), np.asarray(rhs), axes)
    y = from_package(PAPER, lhs, rhs, g, axes, KEY)[0]
    assert 0.02 < error(y, exact) < 0.2


@pytest.mark.parametrize("magnitude", [1e-30, 1e-6, 1e6, 1e18])
def test_tensor_scales_carry_any_magnitude(magnitude):
    """Scales stay FP32: a gradient of 1e-30 is no worse kept than one of 1."""
    lhs, rhs, g, axes = operands(PLAIN)
    g = g * jnp.float32(magnitude)
    actual = from_package(PAPER, lhs, rhs, g, axes, KEY)
    expected = from_oracle(PAPER, lhs, rhs, g, axes, KEY)
    assert error(actual[1], expected[1]) < TOLERANCE
    assert error(actual[2], expected[2]) < TOLERANCE


def test_a_nan_gradient_reaches_both_gradients():
    lhs, rhs, g, axes = operands(PLAIN)
    _, dx, dw = from_package(PAPER, lhs, rhs, g.at[3, 4].set(jnp.nan), axes, KEY)
    assert np.isnan(dx).all()
    assert np.isnan(dw).all()


def test_a_zero_gradient_gives_zeros():
    lhs, rhs, g, axes = operands(PLAIN)
    for precision in (PAPER, same(nvfp4.Quantizer("mxfp4")), PRECISIONS["fp8"]):
        _, dx, dw = from_package(precision, lhs, rhs, jnp.zeros_like(g), axes, KEY)
        assert not np.asarray(dx).any()
        assert not np.asarray(dw).any()

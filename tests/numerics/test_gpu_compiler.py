"""The roundings survive XLA's GPU compiler, which deletes those that are written as casts.

Compiled for an H100 that need not be there; what is asserted is read in the optimized program.
The last tests show that the same reading finds nothing in the naive way of writing it.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import pytest

import nvfp4_jax as nvfp4
from nvfp4_jax import Gemm, LinearPrecision, Quantizer
from tests.gpu_compile import compile_for_h100, instructions, magic_roundings, with_opcode

X = jax.ShapeDtypeStruct((64, 64), jnp.float32)
HALF = jax.ShapeDtypeStruct((64, 64), jnp.bfloat16)
KEY = jax.ShapeDtypeStruct((2,), jnp.uint32)
NOISY = Quantizer(rounding="stochastic")


@functools.cache
def program(function, *arguments):
    return instructions(compile_for_h100(function, *arguments))


def quantize(x):
    return nvfp4.quantize(x, Quantizer())


def back_and_forth(x):
    return nvfp4.qdq(x, Quantizer())


def back_and_forth_with_noise(x, key):
    return nvfp4.qdq(x, NOISY, key=key)


def linear(x, w, g, key):
    """Output and both gradients of a bf16 layer, the backward as the paper has it."""
    precision = LinearPrecision(
        fprop=Gemm(input=Quantizer(), weight=Quantizer("nvfp4", "16x16")),
        wgrad=Gemm(input=Quantizer(rht=16), grad=Quantizer(rht=16, rounding="stochastic")),
    )
    dot_general = nvfp4.make_dot_general(precision, key)
    y, vjp = jax.vjp(lambda x, w: dot_general(x, w, (((1,), (0,)), ((), ()))), x, w)
    return (y, *vjp(g))


def producer(x):
    return nvfp4.qdq((x * x).astype(jnp.bfloat16), Quantizer())


@pytest.mark.parametrize("function", [quantize, back_and_forth])
def test_scales_and_elements_are_rounded_by_addition(function):
    """(a + C) - C once for the E4M3 scales and once for the E2M1 elements."""
    assert len(magic_roundings(program(function, X))) == 2


def test_stored_codes_and_scales_have_their_formats():
    found = program(quantize, X)
    for stored in ("f4e2m1fn", "f8e4m3fn"):
        assert with_opcode(found, "convert", stored), stored


def test_stochastic_rounding_takes_a_floor():
    found = program(back_and_forth_with_noise, X, KEY)
    assert len(with_opcode(found, "floor", "f32")) == 1
    assert len(magic_roundings(found)) == 1, "the scales are rounded to nearest"


@pytest.mark.parametrize("function", [quantize, back_and_forth])
def test_every_quotient_is_corrected_twice(function):
    """The residual of a quotient, (mantissa << k) - mantissa * mantissa, in integers."""
    found = program(function, X)
    by_name = {(i.computation, i.name): i for i in found}

    def opcodes(i):
        operands = [by_name.get((i.computation, name)) for name in i.operands]
        return [o.opcode for o in operands if o is not None]

    residuals = [
        i for i in with_opcode(found, "subtract", "u32") if opcodes(i) == ["shift-left", "multiply"]
    ]
    quotients = with_opcode(found, "divide", "f32")
    assert quotients
    assert len(residuals) == 2 * len(quotients)


def test_a_bf16_producer_keeps_its_rounding():
    assert with_opcode(program(producer, X), "reduce-precision")


def test_a_linear_layer_keeps_all_its_roundings():
    """Fprop's two operands and Wgrad's input by addition; Wgrad's gradient by a floor."""
    found = program(linear, HALF, X, HALF, KEY)
    # Scales of four operands and elements of three.
    assert len(magic_roundings(found)) >= 7
    assert len(with_opcode(found, "floor", "f32")) == 1
    # bf16 roundings: the input, the cast of the weight, and what the two rotations give.
    assert len(with_opcode(found, "reduce-precision")) >= 4
    assert "dot" in {i.opcode for i in found} or "custom-call" in {i.opcode for i in found}


def naive(x):
    """NVFP4 as one would write it first: right on a CPU."""
    blocks = x.reshape(64, 4, 16)
    amax = jnp.max(jnp.abs(x))
    scale = jnp.max(jnp.abs(blocks), axis=-1, keepdims=True) * (2688 / amax / 6)
    scale = scale.astype(jnp.float8_e4m3fn).astype(jnp.float32)
    codes = (blocks / (scale * amax / 2688)).astype(jnp.float4_e2m1fn).astype(jnp.float32)
    return (codes * scale * (amax / 2688)).reshape(64, 64)


def test_casts_would_not_have_survived():
    found = program(naive, X)
    assert not magic_roundings(found)
    assert not [i for i in found if i.type in ("f8e4m3fn", "f4e2m1fn")]


def test_a_pair_of_bf16_casts_would_not_have_survived():
    found = program(lambda x: (x * x).astype(jnp.bfloat16).astype(jnp.float32) + x, X)
    assert not with_opcode(found, "reduce-precision")
    assert "bf16" not in {i.type for i in found}

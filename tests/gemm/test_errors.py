"""What cannot be honoured is refused, and the message names the field and the way out."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

import nvfp4_jax as nvfp4
from nvfp4_jax import Gemm, LinearPrecision, Quantizer

from .precisions import PAPER

AXES = (((1,), (0,)), ((), ()))
X, W = jnp.ones((4, 16)), jnp.ones((16, 8))
PLAIN = nvfp4.make_dot_general(LinearPrecision())

QUANTIZERS = {
    "a misspelled format": ({"format": "nvpf4"}, ["format", "nvpf4", "nvfp4"]),
    "a format that is no word": ({"format": 4}, ["format", "4"]),
    "a block of another format": ({"granularity": "1x32"}, ["granularity", "1x32", "nvfp4"]),
    "rounding misspelled": ({"rounding": "stochastik"}, ["rounding", "stochastic"]),
    "bits that are undefined": ({"rounding": "stochastic", "bits": 4}, ["bits", "4", "8"]),
    "bits without use": ({"bits": 16}, ["bits", "nearest", "stochastic"]),
    "a length that is no rotation": ({"rht": 15}, ["rht", "15", "16"]),
    "a rotation that is a boolean": ({"rht": True}, ["rht", "True"]),
    "a scale of another format": ({"scale": "floor"}, ["scale", "floor", "nvfp4"]),
    "fixed signs of another length": ({"rht": 32, "sign": "fixed"}, ["sign", "16", "random"]),
    "signs without a rotation": ({"sign": "random"}, ["sign", "rht"]),
}


@pytest.mark.parametrize(("fields", "words"), QUANTIZERS.values(), ids=QUANTIZERS)
def test_quantizer(fields, words):
    with pytest.raises(ValueError) as caught:  # noqa: PT011, the words are checked below
        Quantizer(**fields)
    assert not [word for word in words if word not in str(caught.value)]


def test_gemm():
    with pytest.raises(ValueError, match=r"weight.*'fp8'.*Quantizer or 'bf16'"):
        Gemm(weight="fp8")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"input.*None"):
        Gemm(input=None)  # pyright: ignore[reportArgumentType]


def test_linear_precision():
    with pytest.raises(ValueError, match=r"fprop.*grad.*input, weight"):
        LinearPrecision(fprop=Gemm(grad=Quantizer()))
    with pytest.raises(ValueError, match=r"wgrad.*rht = 16.*same rht"):
        LinearPrecision(wgrad=Gemm(input=Quantizer(rht=16), grad=Quantizer()))
    with pytest.raises(ValueError, match=r"dgrad.*sign = fixed.*sign = random.*same rht and sign"):
        LinearPrecision(dgrad=Gemm(grad=Quantizer(rht=16), weight=Quantizer(rht=16, sign="random")))
    with pytest.raises(ValueError, match=r"dgrad.*Gemm"):
        LinearPrecision(dgrad=Quantizer())  # pyright: ignore[reportArgumentType]


def test_quantize():
    with pytest.raises(TypeError, match=r"float array.*int32.*\(3,\)"):
        nvfp4.quantize(jnp.arange(3), Quantizer())
    with pytest.raises(ValueError, match=r"axis 2.*\(4, 16\)"):
        nvfp4.quantize(X, Quantizer(), axis=2)
    with pytest.raises(ValueError, match=r"axis"):
        nvfp4.quantize(jnp.float32(1), Quantizer())
    with pytest.raises(ValueError, match=r"random.*key="):
        nvfp4.quantize(X, Quantizer(rounding="stochastic"))
    with pytest.raises(ValueError, match=r"random.*key="):
        nvfp4.quantize(X, Quantizer(rht=32))
    with pytest.raises(ValueError, match=r"implementation.*'xlaa'.*'xla'"):
        nvfp4.quantize(X, Quantizer(), implementation="xlaa")
    with pytest.raises(ValueError, match=r"one PRNG key.*\(2,\)"):
        nvfp4.quantize(
            X, Quantizer(rounding="stochastic"), key=jax.random.split(jax.random.key(0), 2)
        )


def test_make_dot_general():
    with pytest.raises(ValueError, match=r"random.*key="):
        nvfp4.make_dot_general(PAPER)
    with pytest.raises(ValueError, match=r"implementation.*'triton'"):
        nvfp4.make_dot_general(LinearPrecision(), implementation="triton")


@pytest.mark.parametrize("precision", ["highest", jax.lax.Precision.HIGH, ("default", "highest")])
def test_a_precision_for_the_product_is_refused(precision):
    with pytest.raises(ValueError, match=r"precision = .*leave precision unset"):
        PLAIN(X, W, AXES, precision=precision)


def test_operands_and_results_are_floats():
    with pytest.raises(TypeError, match=r"rhs is int32 of shape \(16, 8\)"):
        PLAIN(X, W.astype(jnp.int32), AXES)
    with pytest.raises(TypeError, match=r"preferred_element_type.*float"):
        PLAIN(X, W, AXES, preferred_element_type=jnp.int32)


@pytest.mark.parametrize(
    "axes",
    [
        (((2,), (0,)), ((), ())),
        (((1, 1), (0, 0)), ((), ())),
        (((1,), ()), ((), ())),
        (((1,), (0,)), ((0,), ())),
        (((0,), (0,)), ((), ())),
    ],
    ids=str,
)
def test_dimension_numbers_that_do_not_fit(axes):
    with pytest.raises((ValueError, TypeError)) as caught:
        PLAIN(X, W, axes)
    assert any(word in str(caught.value) for word in ("axes", "dimension", "shape", "size"))

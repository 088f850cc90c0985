"""Codes, block scales and tensor scales are the oracle's, bit for bit, whatever the tensor."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

import nvfp4_jax as nvfp4
from nvfp4_jax import Quantizer

from .compare import assert_codes
from .inputs import cast, tensors

MX = ("mxfp4", "mxfp8_e4m3", "mxfp8_e5m2")
FORMATS = [
    Quantizer("nvfp4"),
    Quantizer("nvfp4", "16x16"),
    *(Quantizer(f, scale=s) for f in MX for s in ("up", "floor")),
]
FLOAT8 = [
    Quantizer(f, g, scale=s)
    for f in ("fp8_e4m3", "fp8_e5m2")
    for s in ("amax", "power_of_two")
    for g in ("1x128", "128x128", "tensor")
]
ROTATED = [
    *(Quantizer("nvfp4", rht=n) for n in (8, 16, 32, 128)),
    Quantizer("nvfp4", rht=16, sign="random"),
    Quantizer("nvfp4", "16x16", rht=16),
    Quantizer("mxfp4", rht=16),
    Quantizer("mxfp4", rht=64),
    Quantizer("mxfp8_e4m3", rht=16),
    Quantizer("fp8_e4m3", rht=16),
    Quantizer("fp8_e4m3", "tensor", rht=32),
]
STOCHASTIC = [
    *(Quantizer("nvfp4", rounding="stochastic", bits=b) for b in (8, 16, 32)),
    Quantizer("nvfp4", "16x16", rounding="stochastic"),
    Quantizer("nvfp4", rounding="stochastic", rht=16),
    Quantizer("mxfp4", rounding="stochastic", bits=16),
    Quantizer("mxfp4", rounding="stochastic", rht=16),
    Quantizer("mxfp8_e4m3", rounding="stochastic"),
    Quantizer("mxfp8_e5m2", rounding="stochastic", bits=32),
    Quantizer("fp8_e4m3", rounding="stochastic", bits=16),
    Quantizer("fp8_e4m3", "128x128", rounding="stochastic"),
    Quantizer("fp8_e5m2", rounding="stochastic"),
]
KEY = 20250929


def name(quantizer: Quantizer) -> str:
    return str(quantizer).replace(" ", "-")


def check(quantizer: Quantizer, shape: tuple[int, ...], axis: int, dtype: str = "float32"):
    key = jax.random.key(KEY) if quantizer.needs_key else None
    for kind, x in tensors(quantizer.format, shape, quantizer.rht).items():
        try:
            assert_codes(cast(x, dtype), quantizer, axis, key)
        except AssertionError as error:
            raise AssertionError(f"{kind} tensor of {shape} along {axis}: {error}") from None


def either_axis(quantizers: list[Quantizer]) -> list:
    """Each quantizer along one axis, the first or the last by turns."""
    return [
        pytest.param(quantizer, -(i % 2), id=f"{name(quantizer)}-{-(i % 2)}")
        for i, quantizer in enumerate(quantizers)
    ]


@pytest.mark.parametrize("axis", [0, -1])
@pytest.mark.parametrize("quantizer", FORMATS, ids=name)
def test_a_matrix_of_ragged_size(quantizer, axis):
    check(quantizer, (50, 39), axis)


@pytest.mark.parametrize(("quantizer", "axis"), either_axis(FLOAT8))
def test_a_matrix_larger_than_a_block_of_fp8(quantizer, axis):
    check(quantizer, (150, 139), axis)


@pytest.mark.parametrize(("quantizer", "axis"), either_axis(ROTATED))
def test_a_rotated_matrix(quantizer, axis):
    check(quantizer, (50, 39), axis)


@pytest.mark.parametrize(("quantizer", "axis"), either_axis(STOCHASTIC))
def test_stochastic_rounding_of_a_matrix(quantizer, axis):
    check(quantizer, (50, 39), axis)


MANY_AXES = [
    ((50,), 0),
    ((1,), -1),
    ((3, 20, 37), 0),
    ((3, 20, 37), 1),
    ((3, 20, 37), -1),
    ((2, 18, 3, 19), 1),
    ((2, 18, 3, 19), -2),
]
ANY_SHAPE = [
    Quantizer("nvfp4"),
    Quantizer("nvfp4", "16x16"),
    Quantizer("nvfp4", rounding="stochastic", rht=16),
    Quantizer("nvfp4", "16x16", rounding="stochastic", bits=16),
]


@pytest.mark.parametrize(("shape", "axis"), MANY_AXES, ids=str)
@pytest.mark.parametrize("quantizer", ANY_SHAPE, ids=name)
def test_any_number_of_axes(quantizer, shape, axis):
    check(quantizer, shape, axis)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize(
    "quantizer",
    [
        Quantizer("nvfp4"),
        Quantizer("nvfp4", "16x16"),
        Quantizer("nvfp4", rht=16, rounding="stochastic"),
        Quantizer("nvfp4", rht=64),
        Quantizer("mxfp8_e4m3", scale="floor"),
        Quantizer("fp8_e4m3", rht=16),
    ],
    ids=name,
)
def test_inputs_of_sixteen_bits(quantizer, dtype):
    check(quantizer, (50, 39), -1, dtype)


@pytest.mark.parametrize("shape", [(0,), (0, 16), (16, 0)], ids=str)
@pytest.mark.parametrize("quantizer", [Quantizer(), Quantizer("fp8_e4m3", "tensor")], ids=name)
def test_nothing_gives_nothing(quantizer, shape):
    q = nvfp4.quantize(jnp.zeros(shape), quantizer)
    assert q.data.shape == shape
    assert nvfp4.dequantize(q).shape == shape
    assert nvfp4.qdq(jnp.zeros(shape), quantizer).shape == shape
    assert q.tensor_scale is not None
    assert q.tensor_scale.shape == ()

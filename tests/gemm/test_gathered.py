"""A weight stored in parts travels as 4-bit codes, and no bit of the layer changes."""

from __future__ import annotations

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import nvfp4_jax as nvfp4
from nvfp4_jax import Gemm, LinearPrecision, Quantizer

TOKENS, FEATURES_IN, FEATURES_OUT = 64, 128, 96
WEIGHT, GRAD = Quantizer(granularity="16x16"), Quantizer(rounding="stochastic")
PAPER = LinearPrecision(
    fprop=Gemm(input=Quantizer(), weight=WEIGHT),
    dgrad=Gemm(grad=GRAD, weight=WEIGHT),
    wgrad=Gemm(input=Quantizer(rht=16), grad=Quantizer(rht=16, rounding="stochastic")),
)
KEY = jax.random.key(3)


def linear(layout: NamedSharding | None):
    dot_general = nvfp4.make_dot_general(PAPER, KEY, gathered=layout)

    def loss(x, w, dy):
        y = dot_general(x, w, (((1,), (0,)), ((), ())))
        return jnp.sum((y * dy).astype(jnp.float32)), y

    def both(x, w, dy):
        (_, y), (dx, dw) = jax.value_and_grad(loss, (0, 1), has_aux=True)(x, w, dy)
        return y, dx, dw

    return jax.jit(both, compiler_options={"xla_allow_excess_precision": False})


@pytest.fixture(scope="module")
def arrays() -> tuple[jax.Array, ...]:
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (TOKENS, FEATURES_IN), jnp.bfloat16)
    w = jax.random.normal(keys[1], (FEATURES_IN, FEATURES_OUT))
    return x, w, jax.random.normal(keys[2], (TOKENS, FEATURES_OUT), jnp.bfloat16)


@pytest.fixture(scope="module")
def mesh() -> jax.sharding.Mesh:
    return jax.make_mesh((4, 2), ("fsdp", "tensor"), axis_types=(AxisType.Auto,) * 2)


def placed(mesh, arrays):
    layouts = P("fsdp"), P("fsdp", "tensor"), P("fsdp", "tensor")
    pairs = zip(arrays, layouts, strict=True)
    return [jax.device_put(array, NamedSharding(mesh, layout)) for array, layout in pairs]


def test_bits_are_those_of_one_device(mesh, arrays):
    expected = linear(None)(*arrays)
    found = linear(NamedSharding(mesh, P(None, "tensor")))(*placed(mesh, arrays))
    # y sums over features in, which every device has whole; dx over parts of features out and dw
    # over parts of the tokens, in FP32 and another order, then rounded (dx to bf16)
    bounds = 0.0, 2.0**-8, 2.0**-20
    for name, one, own, bound in zip(("y", "dx", "dw"), expected, found, bounds, strict=True):
        one, own = (np.asarray(array, np.float64) for array in (one, own))
        assert np.abs(own - one).max() <= bound * np.abs(one).max(), name


def test_what_travels_is_codes_and_scales(mesh, arrays):
    compiled = linear(NamedSharding(mesh, P(None, "tensor"))).lower(*placed(mesh, arrays)).compile()
    found = re.findall(r"= \(?(\w+)\[([\d,]*)\]\S* all-gather", compiled.as_text())
    sizes = {dtype: math.prod(map(int, shape.split(","))) for dtype, shape in found}
    elements = FEATURES_IN * FEATURES_OUT // 2  # of the part that a device multiplies
    assert sizes.pop("u8") == elements // 2
    assert max(sizes.values()) == elements // 256, sizes  # the scales, which CPUs gather as FP32


def test_refusals(mesh, arrays):
    x, w, _ = arrays
    numbers = (((1,), (0,)), ((), ()))
    three_axes = nvfp4.make_dot_general(
        PAPER, KEY, gathered=NamedSharding(mesh, P(None, None, None))
    )
    with pytest.raises(ValueError, match=r"layout of two axes.*\(128, 96\)"):
        three_axes(x, w, numbers)
    explicit = jax.make_mesh((8,), ("fsdp",), axis_types=(AxisType.Explicit,))
    layout = NamedSharding(explicit, P(None, None))
    placed_x = jax.device_put(x, NamedSharding(explicit, P("fsdp")))
    with pytest.raises(ValueError, match="automatic mesh axes"):
        nvfp4.make_dot_general(PAPER, KEY, gathered=layout)(placed_x, w, numbers)

"""The einsum computes what jnp.einsum does, and knows its input from its weight."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nvfp4_jax as nvfp4
from nvfp4_jax import Gemm, LinearPrecision, Quantizer

EQUATIONS = {
    "bd,df->bf": ((5, 32), (32, 7)),
    "bd,df->fb": ((5, 32), (32, 7)),
    "bd,fd->bf": ((5, 32), (7, 32)),
    "btd,dhk->bthk": ((2, 3, 32), (32, 4, 8)),
    "bthk,hkd->btd": ((2, 3, 4, 8), (4, 8, 16)),
    "ebd,edf->ebf": ((3, 5, 32), (3, 32, 7)),
    "bed,edf->bef": ((5, 3, 32), (3, 32, 7)),
    "...d,df->...f": ((2, 3, 32), (32, 7)),
    "bd,df": ((5, 32), (32, 7)),
}


def arrays(shapes):
    keys = jax.random.split(jax.random.key(0))
    return [jax.random.normal(k, s) for k, s in zip(keys, shapes, strict=True)]


@pytest.mark.parametrize("equation", EQUATIONS)
def test_bf16_equals_einsum_of_bf16_operands(equation):
    x, w = arrays(EQUATIONS[equation])
    y = nvfp4.make_einsum(LinearPrecision())(equation, x, w)
    bf16 = [a.astype(jnp.bfloat16).astype(jnp.float32) for a in (x, w)]
    expected = jnp.einsum(equation, *bf16, precision="highest")
    # exact products of 8-bit significands; sums of 32 in FP32, in any order
    np.testing.assert_allclose(y, expected, rtol=0, atol=32 * 2**-24 * float(jnp.abs(y).max()) * 8)


@pytest.mark.parametrize("equation", ["bd,df->bf", "bd,df->fb", "bd,fd->bf"])
def test_the_weight_is_the_second_operand_in_any_output_order(equation):
    """Only the weight is quantized, so only a change of the weight's format may be seen."""
    x, w = arrays(EQUATIONS[equation])
    precision = LinearPrecision(fprop=Gemm(weight=Quantizer("mxfp4")))
    y = nvfp4.make_einsum(precision)(equation, x, w)
    axis = equation.split(",")[1].index("d")
    operands = x.astype(jnp.bfloat16).astype(jnp.float32), nvfp4.qdq(w, Quantizer("mxfp4"), axis)
    expected = jnp.einsum(equation, *operands, precision="highest")
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-5 * float(jnp.abs(y).max()))


def test_gradients_go_to_their_operands():
    x, w = arrays(EQUATIONS["bd,df->fb"])
    einsum = nvfp4.make_einsum(LinearPrecision())
    dx, dw = jax.grad(lambda x, w: einsum("bd,df->fb", x, w).sum(), (0, 1))(x, w)
    assert dx.shape == x.shape
    assert dw.shape == w.shape
    ones = jnp.broadcast_to(w.astype(jnp.bfloat16).astype(jnp.float32).sum(1), x.shape)
    np.testing.assert_allclose(dx, ones, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("equation", "ndims", "message"),
    [
        ("bd,de,ef->bf", (2, 2, 2), "two operands"),
        ("bd->b", (2,), "two operands"),
        ("bb,bd->bd", (2, 2), "twice"),
        ("bd,df->b", (2, 2), "every label"),
        ("bd,df->bf", (3, 2), "does not fit"),
    ],
)
def test_equations_that_cannot_be_honoured_raise(equation, ndims, message):
    operands = [jnp.ones((2,) * n, jnp.float32) for n in ndims]
    with pytest.raises(ValueError, match=message):
        nvfp4.make_einsum(LinearPrecision())(equation, *operands)

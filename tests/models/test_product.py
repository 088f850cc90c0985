"""Products that no recipe governs: dtypes and roundings of all three."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nvfp4_jax.models.linear import cast_input_only, default_dot_general
from nvfp4_jax.models.product import contract

LAST_FIRST = (((2,), (0,)), ((), ()))


def operands():
    x = jax.random.normal(jax.random.key(0), (2, 40, 24)).astype(jnp.bfloat16)
    w = jax.random.normal(jax.random.key(1), (24, 18), jnp.float32)
    dy = jax.random.normal(jax.random.key(2), (2, 40, 18)).astype(jnp.bfloat16)
    return x, w, dy


def wide(*arrays):
    return [
        np.asarray(array.astype(jnp.bfloat16).astype(jnp.float32), np.float64) for array in arrays
    ]


def test_the_gradient_of_a_master_weight_is_never_rounded_to_bfloat16():
    x, w, dy = operands()
    y, pull = jax.vjp(lambda x, w: default_dot_general(x, w, LAST_FIRST), x, w)
    dx, dw = pull(dy)
    x64, w64, dy64 = wide(x, w, dy)
    assert (y.dtype, dx.dtype, dw.dtype) == (jnp.bfloat16, jnp.bfloat16, jnp.float32)
    # FP32 sums of 80 terms: 80 roundings of 2^-24 at most, where bfloat16 would show 2^-9.
    np.testing.assert_allclose(dw, np.einsum("bti,bto->io", x64, dy64), rtol=1e-5, atol=1e-5)
    # Results in bfloat16 are rounded once: half a unit in the last place, 2^-9.
    np.testing.assert_allclose(y.astype(jnp.float32), x64 @ w64, rtol=2**-8, atol=1e-5)
    np.testing.assert_allclose(dx.astype(jnp.float32), dy64 @ w64.T, rtol=2**-8, atol=1e-5)


def test_logits_in_float32():
    x, w, _ = operands()
    y = default_dot_general(x, w, LAST_FIRST, preferred_element_type=jnp.float32)
    x64, w64 = wide(x, w)
    assert y.dtype == jnp.float32
    np.testing.assert_allclose(y, x64 @ w64, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("equation", ["bgqh,bgsh->bgqs", "bgqn,bgqm->bgnm", "cbq,cqd->bcd"])
def test_batched_products_of_bfloat16(equation):
    """On XLA's CPU backend some of these stop when left to themselves, gradients above all."""
    sizes = dict.fromkeys("bgqhsnmcd", 8)
    first, second = equation.split("->")[0].split(",")
    a, b = (
        jax.random.normal(jax.random.key(i), [sizes[letter] for letter in letters]).astype(
            jnp.bfloat16
        )
        for i, letters in enumerate((first, second))
    )

    def total(a, b):
        return (contract(equation, a, b, jnp.bfloat16, jnp.float32) ** 2).sum()

    value, gradients = jax.jit(jax.value_and_grad(total, argnums=(0, 1)))(a, b)
    a64, b64 = wide(a, b)
    np.testing.assert_allclose(value, (np.einsum(equation, a64, b64) ** 2).sum(), rtol=1e-5)
    assert all(gradient.dtype == jnp.bfloat16 for gradient in gradients)
    assert all(np.isfinite(gradient.astype(jnp.float32)).all() for gradient in gradients)


@pytest.mark.parametrize(
    "options",
    [{"precision": jax.lax.Precision.HIGH}, {"out_sharding": jax.P()}],
    ids=["precision", "out_sharding"],
)
def test_what_cannot_be_honoured_raises(options):
    x, w, _ = operands()
    with pytest.raises(NotImplementedError, match="bind a dot_general"):
        default_dot_general(x, w, LAST_FIRST, **options)


def test_other_dimension_numbers_raise():
    x, w, _ = operands()
    with pytest.raises(NotImplementedError, match="last axis"):
        default_dot_general(x, w.T, (((2,), (1,)), ((), ())))


def test_only_the_input_is_cast():
    x, w, _ = operands()
    cast, weight, bias = cast_input_only((x, w, None), dtype=jnp.float16)
    assert cast.dtype == jnp.float16
    assert weight is w
    assert bias is None
    with pytest.raises(TypeError, match="float dtype"):
        cast_input_only((x, w, None))

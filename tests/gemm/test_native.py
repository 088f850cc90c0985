"""Products of 4-bit codes, by the implementation that every machine has: `jax.nn.scaled_matmul`."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nvfp4_jax as nvfp4
from nvfp4_jax import Gemm, LinearPrecision, Quantizer
from nvfp4_jax.kernels import select

from .precisions import LAYOUTS, PAPER, PLAIN, SEVERAL, same
from .products import assert_products, from_oracle
from .test_products import KEY, operands

PRODUCT = "scaled_matmul_wrapper["  # as a jaxpr writes it
MATRICES = {**LAYOUTS, **SEVERAL}
MATRICES = {name: layout for name, layout in MATRICES.items() if "batch" not in name}


def products(precision, arguments, implementation="cudnn"):
    lhs, rhs, g, axes = arguments

    @jax.jit
    def run(lhs, rhs, g):
        dot_general = nvfp4.make_dot_general(precision, KEY, implementation)
        y, vjp = jax.vjp(lambda lhs, rhs: dot_general(lhs, rhs, axes), lhs, rhs)
        return (y, *vjp(g))

    return run(lhs, rhs, g)


def without_a_name(monkeypatch):
    """As if this machine's best implementation were the one for 4-bit products."""
    monkeypatch.setattr(select, "best", lambda: ("cudnn", None))


@pytest.mark.parametrize("dtypes", ["float32", "bfloat16"])
@pytest.mark.parametrize("residuals", ["bf16", "packed"])
def test_the_papers_recipe(residuals, dtypes):
    precision = replace(PAPER, residuals=residuals)
    arguments = operands(PLAIN, dtypes)
    assert_products(products(precision, arguments), from_oracle(PAPER, *arguments, KEY))


@pytest.mark.parametrize("layout", MATRICES)
def test_every_layout_of_matrices(layout):
    arguments = operands(MATRICES[layout])
    precision = same(Quantizer())
    assert_products(products(precision, arguments), from_oracle(precision, *arguments, KEY))


def test_the_product_is_of_codes():
    arguments = operands(PLAIN)
    text = str(jax.make_jaxpr(lambda: products(PAPER, arguments))())
    assert text.count(PRODUCT) == 3
    assert PRODUCT not in str(jax.make_jaxpr(lambda: products(PAPER, arguments, "xla"))())


def test_what_is_no_such_product_is_emulated(monkeypatch):
    """One bf16 operand, another format, a batch axis: by the definition, unless it was named."""
    without_a_name(monkeypatch)
    for precision, layout in (
        (LinearPrecision(fprop=Gemm(input=Quantizer())), PLAIN),
        (same(Quantizer("mxfp4")), PLAIN),
        (same(Quantizer()), LAYOUTS["batch"]),
    ):
        arguments = operands(layout)
        text = str(jax.make_jaxpr(lambda p=precision, a=arguments: products(p, a, None))())
        assert PRODUCT not in text
        assert_products(
            products(precision, arguments, None), from_oracle(precision, *arguments, KEY)
        )


@pytest.mark.parametrize(
    ("precision", "words"),
    [
        (LinearPrecision(fprop=Gemm(input=Quantizer())), "fprop.*one operand is bf16"),
        (same(Quantizer("mxfp4")), "for nvfp4, not mxfp4"),
        (same(Quantizer(rht=32)), "rotate 16 elements, not 32"),
    ],
)
def test_a_name_means_that_one_or_an_error(precision, words):
    with pytest.raises(ValueError, match=f"'cudnn'.*{words}"):
        nvfp4.make_dot_general(precision, KEY, "cudnn")


def test_a_name_means_that_one_of_batches_too():
    with pytest.raises(ValueError, match=r"'cudnn'.*fprop.*batched"):
        products(same(Quantizer()), operands(LAYOUTS["batch"]))


def test_no_blackwell_here():
    with pytest.raises(ValueError, match=r"'blackwell' needs an NVIDIA Blackwell GPU"):
        nvfp4.make_dot_general(PAPER, KEY, "blackwell")


def test_nothing_of_nothing(monkeypatch):
    without_a_name(monkeypatch)
    empty, weight = jnp.zeros((0, 32), jnp.bfloat16), jnp.ones((32, 16))
    y = jnp.zeros((0, 16), jnp.bfloat16)
    y, dx, dw = products(PAPER, (empty, weight, y, (((1,), (0,)), ((), ()))), None)
    assert (y.shape, dx.shape) == ((0, 16), (0, 32))
    np.testing.assert_array_equal(dw, np.zeros((32, 16)))


def test_in_every_surrounding():
    lhs, rhs, g, axes = operands(PLAIN)
    expected = products(PAPER, (lhs, rhs, g, axes))

    def run(lhs, rhs, g):
        return products(PAPER, (lhs, rhs, g, axes))

    stacked = [jnp.stack([a, a]) for a in (lhs, rhs, g)]
    for actual in (
        jax.checkpoint(run)(lhs, rhs, g),
        [leaf[1] for leaf in jax.vmap(run)(*stacked)],
        [leaf[1] for leaf in jax.lax.scan(lambda _, a: (None, run(*a)), None, stacked)[1]],
    ):
        for a, e in zip(actual, expected, strict=True):
            np.testing.assert_allclose(np.asarray(a), np.asarray(e), rtol=1e-5, atol=1e-5)

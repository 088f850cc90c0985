"""Parts of a batch, mapped over, are one tensor to every quantizer; only sums come apart."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nvfp4_jax.dot_general import make_dot_general
from nvfp4_jax.precision import Gemm, LinearPrecision
from nvfp4_jax.quantizer import Quantizer
from nvfp4_jax.together import FeatureParts

NUMBERS = (((2,), (0,)), ((), ()))
GRAD = Quantizer("nvfp4", rounding="stochastic")
TURNED = Quantizer("nvfp4", rht=16)
PAPER = LinearPrecision(
    Gemm(input=Quantizer("nvfp4"), weight=Quantizer("nvfp4", granularity="16x16")),
    Gemm(grad=GRAD, weight=Quantizer("nvfp4", granularity="16x16")),
    Gemm(input=TURNED, grad=Quantizer("nvfp4", rht=16, rounding="stochastic")),
)
KEY = jax.random.key(5)
PARTS, ROWS, LENGTH, WIDTH, OUT = 4, 2, 24, 32, 48


def arrays(seed: int = 0):
    """x (parts, rows, length, features) whose parts differ in size, w, and dy."""
    draw = np.random.default_rng(seed)
    sizes = np.array([1, 30, 0.01, 3])[:, None, None, None]
    x = draw.normal(size=(PARTS, ROWS, LENGTH, WIDTH)) * sizes
    dy = draw.normal(size=(PARTS, ROWS, LENGTH, OUT)) * sizes[::-1]
    w = draw.normal(size=(WIDTH, OUT))
    return jnp.asarray(x, jnp.bfloat16), jnp.asarray(w, jnp.float32), jnp.asarray(dy, jnp.bfloat16)


def pulled(precision, x, w, dy, **options):
    """(y, dx, dw) of one linear."""
    dot_general = make_dot_general(precision, KEY, **options)
    y, pull = jax.vjp(lambda x, w: dot_general(x, w, NUMBERS), x, w)
    return y, *pull(dy)


@pytest.mark.parametrize("precision", [LinearPrecision(), PAPER], ids=["bf16", "nvfp4"])
def test_parts_have_the_numbers_of_the_whole_and_gradients_of_their_own(precision):
    x, w, dy = arrays()
    joined = x.reshape(-1, LENGTH, WIDTH), w, dy.reshape(-1, LENGTH, OUT)
    whole = jax.jit(partial(pulled, precision))(*joined)
    mapped = jax.vmap(partial(pulled, precision, together=True), (0, None, 0))
    y, dx, dw = jax.jit(mapped)(x, w, dy)
    assert dw.shape == (PARTS, WIDTH, OUT)
    if precision is PAPER:  # 4-bit products are exact in FP32, whatever the order of their sums
        assert (y.reshape(whole[0].shape) == whole[0]).all()
        assert (dx.reshape(whole[1].shape) == whole[1]).all()
    else:  # FP32 sums in another order, rounded to the same bf16 or to its neighbour
        order = WIDTH * 2.0**-24 * float(jnp.abs(x).max()) * float(jnp.abs(w).max())
        np.testing.assert_allclose(y.reshape(whole[0].shape), whole[0], rtol=2**-7, atol=order)
    bound = 2**-20 * np.abs(np.asarray(whole[2])).max()
    np.testing.assert_allclose(dw.sum(axis=0), whole[2], rtol=0, atol=bound)


def test_a_part_is_summed_alone():
    """The gradient of one part does not change when another's dy is negated: amaxes stay."""
    x, w, dy = arrays()
    other = dy.at[1].multiply(-1)
    run = jax.jit(jax.vmap(lambda x, dy: pulled(PAPER, x, w, dy, together=True)[2]))
    dw, dw_other = run(x, dy), run(x, other)
    for part in (0, 2, 3):
        assert (dw[part] == dw_other[part]).all()
    assert not (dw[1] == dw_other[1]).all()


def test_parts_do_not_depend_on_how_many_there_are_but_for_the_amax():
    """In bf16 nothing is common: two parts alone are two parts of four, to the bit."""
    x, w, dy = arrays()
    run = jax.jit(
        jax.vmap(lambda x, dy: pulled(LinearPrecision(), x, w, dy, together=True)),
    )
    for four, two in zip(run(x, dy), run(x[:2], dy[:2]), strict=True):
        assert (four[:2] == two).all()


@pytest.mark.parametrize("axis", ["in", "out"])
def test_features_in_parts_are_the_same_product(axis):
    """In NVFP4, whose products are exact in FP32, to the bit; no order of sums shows."""
    x, w, dy = arrays()

    def run(feature_parts, x, dy):
        return pulled(PAPER, x, w, dy, together=True, feature_parts=feature_parts)

    @jax.jit
    def both(x, dy):
        return [jax.vmap(partial(run, cut))(x, dy) for cut in (FeatureParts(axis, 4), None)]

    for own, plain in zip(*both(x, dy), strict=True):
        assert (own == plain).all()


def test_parts_of_features_are_added_in_pairs():
    """(2^12 + e) + (e - 2^12) is e in FP32, where the first half loses its e; otherwise it is 0."""
    tiny = 2.0**-12
    x = jnp.array([[[[4096, tiny, tiny, -4096]]]], jnp.bfloat16)
    w, halves = jnp.ones((4, 1), jnp.float32), FeatureParts("in", 2)
    product = make_dot_general(LinearPrecision(), together=True, feature_parts=halves)
    y = jax.vmap(lambda x: product(x, w, NUMBERS, preferred_element_type=jnp.float32))(x)
    assert float(y[0, 0, 0, 0]) == tiny


def test_alone_it_is_the_linear_itself():
    x, w, dy = arrays()
    both = (jax.jit(partial(pulled, PAPER, together=together)) for together in (True, False))
    for own, plain in zip(*(run(x[0], w, dy[0]) for run in both), strict=True):
        assert (own == plain).all()


def test_what_cannot_be_together_is_refused():
    x, w, dy = arrays()
    packed = LinearPrecision(PAPER.fprop, PAPER.dgrad, PAPER.wgrad, residuals="packed")
    with pytest.raises(ValueError, match="leave out gathered"):
        make_dot_general(packed, KEY, together=True)
    weights = jnp.stack([w] * PARTS)
    with pytest.raises(ValueError, match="map over the input alone"):
        jax.vmap(lambda x, w: pulled(PAPER, x, w, dy[0], together=True)[0])(x, weights)
    with pytest.raises(ValueError, match="for together = True"):
        make_dot_general(PAPER, KEY, feature_parts=FeatureParts("in", 2))
    thirds = make_dot_general(PAPER, KEY, together=True, feature_parts=FeatureParts("out", 3))
    with pytest.raises(ValueError, match="power of two that divides the 48 features out"):
        thirds(x[0], w, NUMBERS)
    short = x[:, :, :5], dy[:, :, :5]
    with pytest.raises(ValueError, match="whole rotations of 16 tokens"):
        jax.vmap(lambda x, dy: pulled(PAPER, x, w, dy, together=True)[2])(*short)
    turned = make_dot_general(LinearPrecision(), together=True)
    with pytest.raises(ValueError, match="first axis of the input must be rows"):
        turned(w, w, (((0,), (0,)), ((), ())))

"""relu(u)^2 with its amaxes, and an MLP that hands them on, on a real GPU.

Bits are those of the definitions: of plain XLA on the same GPU, of the oracle where XLA flushes
subnormal numbers, and of the amax kernels.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nvfp4_jax import make_dot_general
from nvfp4_jax.chained import Bound, relu_squared_mlp
from nvfp4_jax.kernels import launch, relu_squared
from nvfp4_jax.kernels.launch import Copy
from nvfp4_jax.models import mlp
from tests.gemm.precisions import PAPER, PRECISIONS
from tests.kernels.cases import BF16, COLUMN_WISE, ROTATED, ROW_WISE, SIGNS, expected_amax, tensor

F32 = np.float32
COPIES = ((ROW_WISE, ROTATED), (ROW_WISE, COLUMN_WISE), (Copy("columns", rht=True),), (ROW_WISE,))
SHAPES = (
    (1, 1, 1),
    (1, 3, 40),
    (1, 37, 101),
    (2, 37, 50),
    (1, 8191, 5000),
    (1, 32768, 3072),
)


def differing(a: jax.Array, b: jax.Array) -> int:
    """Elements whose bits differ; zeros of either sign are one number, and so are all NaN."""
    bits = a.view(jnp.uint16) != b.view(jnp.uint16)
    a, b = a.astype(jnp.float32), b.astype(jnp.float32)
    alike = ((a == 0) & (b == 0)) | (jnp.isnan(a) & jnp.isnan(b))
    return int(jnp.sum(bits & ~alike))


@jax.jit
def defined(u, dr):
    """By plain XLA; its own rounding to bf16, which is stored."""
    wide = jax.nn.relu(u.astype(jnp.float32))
    wide = jnp.square(wide) if dr is None else 2 * wide * dr.astype(jnp.float32)
    return wide.astype(jnp.bfloat16)


@pytest.mark.parametrize("gradient", [False, True], ids=["value", "gradient"])
@pytest.mark.parametrize("copies", COPIES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_bits_are_the_definitions(shape, copies, gradient):
    u, dr = (jnp.asarray(tensor("normal", shape, seed=seed)) for seed in (0, 1))
    u = u.at[0, 0, 0].set(-0.0)
    kernel = jax.jit(lambda u, dr: relu_squared.relu_squared(u, dr, copies, SIGNS))
    dr = dr if gradient else None
    (result, amax), want = kernel(u, dr), defined(u, dr)
    assert differing(result, want) == 0
    found = jax.jit(lambda x: launch.amax_bits(x, copies, SIGNS))(want)
    np.testing.assert_array_equal(np.asarray(amax), np.asarray(found))
    again, amax_again = kernel(u, dr)
    assert differing(again, result) == 0
    np.testing.assert_array_equal(np.asarray(amax), np.asarray(amax_again))


@pytest.mark.parametrize("gradient", [False, True], ids=["value", "gradient"])
@pytest.mark.parametrize("kind", ["wide", "blocks", "tiny", "huge", "zero"])
def test_the_bits_are_the_oracles(kind, gradient):
    """Squares that are subnormal, zero, or beyond bf16."""
    shape, copies = (1, 35, 72), (ROW_WISE, ROTATED)
    u, dr = tensor(kind, shape), tensor(kind, shape, seed=1)
    with np.errstate(all="ignore"):
        wide = np.maximum(u.astype(F32), F32(0))
        wide = F32(2) * wide * dr.astype(F32) if gradient else wide * wide
        want = wide.astype(BF16)
    given = jnp.asarray(u), jnp.asarray(dr) if gradient else None
    result, amax = jax.jit(lambda *a: relu_squared.relu_squared(*a, copies, SIGNS))(*given)
    assert differing(result, jnp.asarray(want)) == 0
    for copy, bits in zip(copies, np.asarray(amax), strict=True):
        expected = expected_amax(want, copy)
        assert bits == expected or np.isnan(expected.view(F32))


@pytest.mark.parametrize("bad", [np.nan, np.inf, 3e38])
def test_what_is_not_finite_survives(bad):
    u, dr = tensor("normal", (1, 4096, 1024)), tensor("normal", (1, 4096, 1024), seed=1)
    u[0, 4000, 77] = bad
    for slope in (None, jnp.asarray(dr) * 100):
        kernel = jax.jit(lambda u, dr: relu_squared.relu_squared(u, dr, (ROW_WISE, ROTATED), SIGNS))
        result, amax = kernel(jnp.asarray(u), slope)
        assert np.all(np.asarray(amax) >= F32(np.inf).view(np.int32))
        assert differing(result, defined(jnp.asarray(u), slope)) == 0


@pytest.mark.parametrize("precision", [PAPER, PRECISIONS["rows"]], ids=["paper", "rows"])
@pytest.mark.parametrize(("tokens", "hidden", "ffn"), [((2, 200), 96, 160), ((8192,), 768, 3072)])
def test_an_mlp_that_hands_amaxes_on(precision, tokens, hidden, ffn):
    """Operands have the same bits, and products may sum in the order of another kernel."""
    keys = jax.random.split(jax.random.key(0), 4)
    x, dy = (jax.random.normal(key, (*tokens, hidden), jnp.bfloat16) for key in keys[:2])
    shapes = (hidden, ffn), (ffn, hidden)
    weights = [
        jax.random.normal(k, s, jnp.float32) / s[0] ** 0.5
        for k, s in zip(keys[2:], shapes, strict=True)
    ]
    up, down = jax.random.split(jax.random.key(1))

    def chained(x, w_up, w_down):
        y = relu_squared_mlp(x, w_up, w_down, Bound(precision, up), Bound(precision, down))
        assert y is not None
        return y

    def one_after_another(x, w_up, w_down):
        numbers = (((x.ndim - 1,), (0,)), ((), ()))
        u = make_dot_general(precision, up)(x, w_up, numbers)
        return make_dot_general(precision, down)(mlp.relu_squared(u), w_down, numbers)

    def both(form):
        y, pull = jax.vjp(form, x, *weights)
        return (y, *pull(dy))

    found, want = (jax.jit(both, static_argnums=0)(f) for f in (chained, one_after_another))
    for a, b in zip(found, want, strict=True):
        a, b = (np.asarray(v).astype(np.float64) for v in (a, b))
        assert np.linalg.norm(a - b) <= 2.0**-8 * np.linalg.norm(b)

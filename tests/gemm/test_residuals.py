"""What the backward pass keeps changes memory and no bit of any result."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import nvfp4_jax as nvfp4
from nvfp4_jax import Gemm, LinearPrecision, Quantizer
from nvfp4_jax.models import linear as models_linear
from nvfp4_jax.residuals import LINEAR_INPUT
from tests.gemm.precisions import LEAN, PAPER, PRECISIONS

NUMBERS = (((1,), (0,)), ((), ()))
KEY = jax.random.key(3)


def products(precision, lhs, rhs, g, numbers=NUMBERS):
    """(y, dx, dw), jitted as a whole."""

    @jax.jit
    def run(lhs, rhs, g):
        dot_general = nvfp4.make_dot_general(precision, KEY)
        y, vjp = jax.vjp(lambda lhs, rhs: dot_general(lhs, rhs, numbers), lhs, rhs)
        return (y, *vjp(g))

    return run(lhs, rhs, g)


def tensors(tokens: int, features: int, out: int):
    rng = np.random.default_rng(tokens)
    lhs, g = (
        jnp.asarray(rng.standard_normal((tokens, size)), jnp.bfloat16) for size in (features, out)
    )
    return lhs, jnp.asarray(rng.standard_normal((features, out)), jnp.float32), g


@pytest.mark.parametrize(
    "precision", [PAPER, LEAN, PRECISIONS["mxfp8"]], ids=["paper", "lean", "mxfp8"]
)
@pytest.mark.parametrize("tokens", [64, 37])
def test_packed_residuals_change_no_bit(precision, tokens):
    lhs, rhs, g = tensors(tokens, 48, 40)
    plain = products(precision, lhs, rhs, g)
    packed = products(replace(precision, residuals="packed"), lhs, rhs, g)
    for a, b in zip(plain, packed, strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def test_with_several_axes_and_a_batch():
    rng = np.random.default_rng(5)
    lhs = jnp.asarray(rng.standard_normal((2, 19, 3, 16)), jnp.bfloat16)
    rhs = jnp.asarray(rng.standard_normal((2, 3, 16, 24)), jnp.float32)
    g = jnp.asarray(rng.standard_normal((2, 19, 24)), jnp.bfloat16)
    numbers = (((2, 3), (1, 2)), ((0,), (0,)))
    plain = products(PAPER, lhs, rhs, g, numbers)
    packed = products(replace(PAPER, residuals="packed"), lhs, rhs, g, numbers)
    for a, b in zip(plain, packed, strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def held(f, *arrays):
    """The arrays that the backward pass of `f` holds, as shapes: nothing is compiled."""
    return jax.tree.leaves(jax.eval_shape(lambda *arrays: jax.vjp(f, *arrays)[1], *arrays))


def bits(array: jax.ShapeDtypeStruct) -> int:
    return 8 * array.size * array.dtype.itemsize


def kept(precision, lhs, rhs):
    """The arrays the backward pass holds, but for the weight's and the key."""
    dot_general = nvfp4.make_dot_general(precision, KEY)
    arrays = held(lambda lhs: dot_general(lhs, rhs, NUMBERS), lhs)
    return [x for x in arrays if x.shape[-1:] != rhs.shape[-1:] and x.size > 2]


def test_packed_residuals_take_four_and_a_half_bits():
    lhs, rhs, _ = tensors(512, 256, 48)
    arrays = kept(replace(PAPER, residuals="packed"), lhs, rhs)
    assert 4.5 <= sum(map(bits, arrays)) / lhs.size <= 4.6
    assert sum(map(bits, kept(PAPER, lhs, rhs))) / lhs.size == 16


@pytest.mark.parametrize(("residuals", "most"), [("bf16", 16), ("packed", 4.6)])
def test_rematerialization_can_keep_the_inputs_of_linears_alone(residuals, most):
    """relu(x w)² w: the argument x, and what the two products keep, outlive the forward pass."""
    x, w, _ = tensors(512, 256, 256)
    precision = replace(PAPER, residuals=residuals)

    def layer(x, w):
        dot_general = nvfp4.make_dot_general(precision, KEY)
        h = jnp.square(jax.nn.relu(dot_general(x, w, NUMBERS)))
        return dot_general(h, w, NUMBERS)

    policy = jax.checkpoint_policies.save_only_these_names(LINEAR_INPUT)
    leaves = held(jax.checkpoint(layer, policy=policy), x, w)
    arrays = [leaf for leaf in leaves if leaf.dtype != w.dtype and leaf.size > 2]
    assert 2 * 4.5 * x.size < sum(map(bits, arrays)) <= (16 + 2 * most) * x.size


def test_models_call_it_the_same():
    assert LINEAR_INPUT == models_linear.LINEAR_INPUT


@pytest.mark.parametrize("mode", [AxisType.Auto, AxisType.Explicit])
def test_packed_residuals_on_a_mesh(mode):
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(mode, mode))
    precision = replace(PAPER, residuals="packed")
    arrays = tensors(64, 96, 80)
    alone = products(precision, *arrays)
    specs = P("a", None), P(None, "b"), P("a", "b")
    with jax.set_mesh(mesh):
        pairs = zip(arrays, specs, strict=True)
        placed = products(precision, *(jax.device_put(x, NamedSharding(mesh, s)) for x, s in pairs))
    for a, b in zip(alone, placed, strict=True):
        a, b = (np.asarray(jax.device_get(v)).astype(np.float32) for v in (a, b))
        assert np.linalg.norm(a - b) <= 2**-8 * np.linalg.norm(a)


def test_packing_what_is_not_quantized_is_refused():
    fprop = Gemm(input=Quantizer(), weight=Quantizer())
    with pytest.raises(ValueError, match=r"residuals = 'packed'.*wgrad.*quantize it"):
        LinearPrecision(fprop=fprop, residuals="packed")
    with pytest.raises(ValueError, match=r"residuals = 'fp4'.*bf16, packed"):
        LinearPrecision(residuals="fp4")  # pyright: ignore[reportArgumentType]

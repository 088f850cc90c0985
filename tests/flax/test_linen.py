"""Linen layers under a recipe: what they compute, what they draw, what they refuse."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nvfp4_jax as nvfp4
from nvfp4_jax.keys import layer_key

from .recipes import small_recipe

RECIPE = small_recipe()
NUMBERS = (((1,), (0,)), ((), ()))


class Net(nn.Module):
    """Dense, DenseGeneral and attention, once each."""

    recipe: object = None

    @nn.compact
    def __call__(self, x):
        plug = {}
        attention = {}
        if self.recipe is not None:
            cls = nvfp4.linen.dot_general_cls(self.recipe)
            plug = {"dot_general_cls": cls}
            attention = {"qkv_dot_general_cls": cls, "out_dot_general_cls": cls}
        bf16 = {"dtype": jnp.bfloat16, "promote_dtype": nvfp4.linen.keep_weight}
        x = nn.Dense(32, name="up", **bf16, **plug)(x)
        x = nn.DenseGeneral((2, 16), name="mix", **bf16, **plug)(x).reshape(1, -1, 32)
        x = nn.MultiHeadDotProductAttention(
            num_heads=2, dtype=jnp.bfloat16, name="attention", **attention
        )(x)
        return nn.Dense(8, name="head", **bf16, **plug)(x)


class Small(nn.Module):
    """A layer that draws and a head that does not: what gradients need, compiled quickly."""

    recipe: object

    @nn.compact
    def __call__(self, x):
        bf16 = {
            "dtype": jnp.bfloat16,
            "promote_dtype": nvfp4.linen.keep_weight,
            "dot_general_cls": nvfp4.linen.dot_general_cls(self.recipe),
        }
        return nn.Dense(8, name="head", **bf16)(nn.Dense(32, name="up", **bf16)(x))


@pytest.fixture(scope="module")
def x():
    return jax.random.normal(jax.random.key(0), (32, 48)).astype(jnp.bfloat16)


@pytest.fixture(scope="module")
def variables(x):
    return jax.jit(Net(RECIPE).init)(jax.random.key(1), x)


def test_parameters_are_those_of_the_model_without_a_recipe(x, variables):
    plain = jax.eval_shape(Net().init, jax.random.key(1), x)
    assert jax.tree.map(jnp.shape, plain) == jax.tree.map(jnp.shape, variables)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


def test_a_layer_computes_what_its_dot_general_does(x):
    layer = nn.Dense(
        24,
        use_bias=False,
        dtype=jnp.bfloat16,
        promote_dtype=nvfp4.linen.keep_weight,
        dot_general_cls=nvfp4.linen.dot_general_cls(RECIPE),
    )
    variables = layer.init(jax.random.key(1), x)
    y = layer.apply(variables, x, rngs={"sr": jax.random.key(2)})
    precision = RECIPE.precision["nvfp4"]
    key = layer_key(jax.random.key(0), "unused: Fprop draws nothing here")
    expected = nvfp4.make_dot_general(precision, key)(x, variables["params"]["kernel"], NUMBERS)
    np.testing.assert_array_equal(np.asarray(y, np.float32), np.asarray(expected, np.float32))


def gradients(x, key):
    model = Small(RECIPE)
    variables = model.init(jax.random.key(1), x)

    def loss(params):
        y = model.apply({"params": params}, x, rngs={"sr": key})
        return jnp.mean(jnp.square(y.astype(jnp.float32)))

    return jax.jit(jax.grad(loss))(variables["params"])


def test_gradients_depend_on_the_stream_and_on_nothing_else(x):
    one, same, other = (gradients(x, jax.random.key(k)) for k in (2, 2, 3))
    kernels = [g["up"]["kernel"] for g in (one, same, other)]
    np.testing.assert_array_equal(kernels[0], kernels[1])
    assert (np.asarray(kernels[0]) != np.asarray(kernels[2])).mean() > 0.5


def test_weight_gradients_are_float32_and_not_rounded_to_bf16(x):
    kernel = gradients(x, jax.random.key(2))["up"]["kernel"]
    rounded = kernel.astype(jnp.bfloat16).astype(jnp.float32)
    assert kernel.dtype == jnp.float32
    assert (np.asarray(kernel) != np.asarray(rounded)).mean() > 0.5


def test_a_missing_stream_raises_and_names_layer_and_remedy(x, variables):
    with pytest.raises(ValueError, match=r"'up' draws random numbers.*rngs=\{'sr': key\}"):
        Net(RECIPE).apply(variables, x)
    with pytest.raises(ValueError, match="no stream 'sr'"):
        Net(RECIPE).apply(variables, x, rngs={"params": jax.random.key(0)})


def test_evaluation_needs_no_stream(x, variables):
    y = jax.jit(Net(RECIPE.for_evaluation()).apply)(variables, x)
    assert bool(jnp.isfinite(y.astype(jnp.float32)).all())


def test_the_stream_may_be_called_sr_rng(x, variables):
    key = jax.random.key(2)
    with_sr_rng = jax.eval_shape(lambda: Net(RECIPE).apply(variables, x, rngs={"sr_rng": key}))
    assert with_sr_rng.shape == (1, 32, 8)


def test_a_schedule_must_be_settled_first():
    recipe = small_recipe('[[schedule]]\nfrom = 0.5\nprecision = "bf16"\n')
    with pytest.raises(nvfp4.recipe.RecipeError, match=r"recipe\.at\(step, total_steps\)"):
        nvfp4.linen.dot_general_cls(recipe)
    assert nvfp4.linen.dot_general_cls(recipe.at(0, 10)) is not None


def test_under_remat_and_vmap_of_the_batch(x, variables):
    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x):
            cls = nvfp4.linen.dot_general_cls(RECIPE)
            return nn.remat(nn.Dense)(16, name="up", dot_general_cls=cls)(x)

    x = x.astype(jnp.float32)
    params = Layer().init(jax.random.key(0), x)
    rngs = {"sr": jax.random.key(1)}

    def loss(params, x):
        return Layer().apply(params, x, rngs=rngs).sum()

    grads = jax.jit(jax.vmap(jax.grad(loss), (None, 0)))(params, jnp.stack([x, 2 * x]))
    alone = jax.jit(jax.grad(loss))(params, x)
    batched = grads["params"]["up"]["kernel"][0]
    np.testing.assert_allclose(
        batched, alone["params"]["up"]["kernel"], rtol=1e-5, atol=1e-5 * float(abs(batched).max())
    )

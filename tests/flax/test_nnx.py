"""NNX models under a recipe: which layers, which numbers, which state."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import nvfp4_jax as nvfp4
from nvfp4_jax.nnx import linear_modules

from .recipes import small_recipe

RECIPE = small_recipe()
EVERYTHING = {
    "attention/query",
    "attention/key",
    "attention/value",
    "attention/out",
    "blocks_0/up",
    "blocks_1/up",
    "mix",
    "outer",
    "head",
}


class Block(nnx.Module):
    def __init__(self, rngs):
        self.up = nnx.Linear(32, 32, dtype=jnp.bfloat16, rngs=rngs)

    def __call__(self, x):
        return x + self.up(x)


class Net(nnx.Module):
    """Every kind of layer the door equips, in a list, at the top, and inside attention."""

    def __init__(self, rngs):
        bf16 = {"dtype": jnp.bfloat16, "rngs": rngs}
        self.blocks = nnx.List([Block(rngs), Block(rngs)])
        self.attention = nnx.MultiHeadAttention(2, 32, decode=False, **bf16)
        self.mix = nnx.LinearGeneral((32,), (2, 16), **bf16)
        self.outer = nnx.Einsum("thk,hkd->dt", (2, 16, 32), None, **bf16)
        self.head = nnx.Linear(32, 8, **bf16)

    def __call__(self, x):
        for block in self.blocks:
            x = block(x)
        x = self.attention(x[None])[0]
        return self.head(self.outer(self.mix(x)).T)


@pytest.fixture
def x():
    return jax.random.normal(jax.random.key(0), (48, 32)).astype(jnp.bfloat16)


class Small(nnx.Module):
    """Two layers that draw, and a head that does not: what gradients need, compiled quickly."""

    def __init__(self, rngs):
        self.blocks = nnx.List([Block(rngs), Block(rngs)])
        self.head = nnx.Linear(32, 8, dtype=jnp.bfloat16, rngs=rngs)

    def __call__(self, x):
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def equipped(recipe=RECIPE, seed=0):
    return nvfp4.nnx.apply_recipe(Small(nnx.Rngs(0)), recipe, rngs=nnx.Rngs(sr=seed))


@nnx.jit
def gradients(model, x):
    def loss(model):
        return jnp.mean(jnp.square(model(x).astype(jnp.float32)))

    return nnx.grad(loss)(model)


def test_attention_and_einsum_draw_in_the_backward_pass(x):
    model = nvfp4.nnx.apply_recipe(Net(nnx.Rngs(0)), RECIPE, rngs=nnx.Rngs(sr=0))
    gradients(model, x)
    counts = {
        path: node.dot_general.stream
        for path, node in linear_modules(model).items()
        if path in ("attention/query", "mix")
    }
    assert [int(stream.count[...]) for stream in counts.values()] == [1, 1]
    assert int(model.outer.einsum_op.stream.count[...]) == 1


def test_every_linear_layer_is_found_by_its_recipe_path():
    assert set(linear_modules(Net(nnx.Rngs(0)))) == EVERYTHING


def test_bf16_everywhere_is_the_model_itself(x):
    """The same products, up to the order of FP32 sums before a rounding to bf16."""
    bf16 = nvfp4.load_recipe("bf16")
    model = nvfp4.nnx.apply_recipe(Net(nnx.Rngs(0)), bf16)
    run = nnx.jit(lambda model, x: model(x))
    y, expected = (np.asarray(run(m, x), np.float32) for m in (model, Net(nnx.Rngs(0))))
    assert np.linalg.norm(y - expected) <= 2**-7 * np.linalg.norm(expected)


def test_a_layer_computes_what_its_dot_general_does(x):
    model = equipped()
    kernel = model.blocks[0].up.kernel[...]
    dot_general = nvfp4.make_dot_general(RECIPE.precision["nvfp4"], jax.random.key(0))
    expected = dot_general(x, kernel, (((1,), (0,)), ((), ())))
    np.testing.assert_array_equal(
        np.asarray(model.blocks[0].up(x), np.float32), np.asarray(expected, np.float32)
    )


def test_every_call_draws_anew_and_the_seed_decides(x):
    model, again, other = equipped(), equipped(), equipped(seed=1)
    first, second = gradients(model, x), gradients(model, x)
    same, different = gradients(again, x), gradients(other, x)
    kernel = [g.blocks[0].up.kernel[...] for g in (first, second, same, different)]
    np.testing.assert_array_equal(kernel[0], kernel[2])
    assert (np.asarray(kernel[0]) != np.asarray(kernel[1])).mean() > 0.5
    assert (np.asarray(kernel[0]) != np.asarray(kernel[3])).mean() > 0.5


def test_layers_draw_from_streams_of_their_own(x):
    """Taking layer 1 out of the recipe leaves layer 0's gradient bits as they were."""
    text = RECIPE.text.replace('match = "head"', 'regex = "head|blocks_1/up"')
    fewer = nvfp4.recipe.Recipe.from_text(text, "fewer")

    def streams(model):
        stream = model.blocks[0].up.dot_general.stream
        return np.asarray(jax.random.key_data(stream.key[...]))

    np.testing.assert_array_equal(streams(equipped()), streams(equipped(fewer)))
    assert equipped(fewer).blocks[1].up.dot_general.stream is None


def test_parameters_and_their_gradients_stay_float32(x):
    model = equipped()
    before = nnx.state(Small(nnx.Rngs(0)), nnx.Param)
    after = nnx.state(model, nnx.Param)
    jax.tree.map(np.testing.assert_array_equal, before, after)
    grads = nnx.state(gradients(model, x), nnx.Param)
    assert {leaf.dtype for leaf in jax.tree.leaves(grads)} == {jnp.dtype("float32")}
    kernel = np.asarray(grads["blocks"][0]["up"]["kernel"][...])
    assert (kernel != kernel.astype(jnp.bfloat16).astype(np.float32)).mean() > 0.5


def test_streams_survive_split_and_merge(x):
    definition, state = nnx.split(equipped())
    one, other = nnx.merge(definition, state), equipped()
    np.testing.assert_array_equal(
        gradients(one, x).head.kernel[...], gradients(other, x).head.kernel[...]
    )


def test_another_recipe_replaces_the_first(x):
    model = nvfp4.nnx.apply_recipe(equipped(), nvfp4.load_recipe("bf16"))
    assert not model.blocks[0].up.dot_general.precision.quantized
    assert model.blocks[0].up.dot_general.stream is None


def test_what_cannot_be_honoured_raises_and_leaves_the_model_alone():
    model = Net(nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"rngs=nnx\.Rngs\(sr=seed\)"):
        nvfp4.nnx.apply_recipe(model, RECIPE)
    uncovered = nvfp4.recipe.Recipe.from_text('[[rule]]\nmatch="head"\nprecision="bf16"\n', "r")
    with pytest.raises(nvfp4.recipe.RecipeError, match="no rule covers attention/key"):
        nvfp4.nnx.apply_recipe(model, uncovered, rngs=nnx.Rngs(sr=0))
    scheduled = small_recipe('[[schedule]]\nfrom = 0.5\nprecision = "bf16"\n')
    with pytest.raises(nvfp4.recipe.RecipeError, match="switch_points"):
        nvfp4.nnx.apply_recipe(model, scheduled, rngs=nnx.Rngs(sr=0))
    with pytest.raises(ValueError, match="no Linear"):
        nvfp4.nnx.apply_recipe(nnx.LayerNorm(4, rngs=nnx.Rngs(0)), RECIPE)
    assert not isinstance(model.blocks[0].up.dot_general, nvfp4.nnx.RecipeOperation)

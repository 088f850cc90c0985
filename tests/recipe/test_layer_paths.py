"""Linear layers found in whatever holds a model, under the paths that recipes use."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from nvfp4_jax.recipe import layer_path, linear_layers
from nvfp4_jax.recipe.layers import count_parameters

from .trees import kernel, shape


@pytest.mark.parametrize(
    ("path", "written"),
    [
        ("blocks/7/mlp/up", "blocks_7/mlp/up"),
        ("blocks_7/mlp/up", "blocks_7/mlp/up"),
        (("blocks", 7, "mlp", "up"), "blocks_7/mlp/up"),
        ("towers/0/blocks/12/up", "towers_0/blocks_12/up"),
        ("head", "head"),
        ("7/up", "7/up"),  # nothing before the number to join it to
    ],
)
def test_layer_path(path, written):
    assert layer_path(path) == written
    assert layer_path(written) == written


class Block(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.MultiHeadDotProductAttention(num_heads=2, name="attention")(x)
        return nn.LayerNorm()(nn.Dense(6, name="up")(x))


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x):
        for i in range(2):
            x = Block(name=f"blocks_{i}")(x)
        return nn.Dense(3, name="head")(x)


def test_linen_with_and_without_the_outer_params():
    variables = jax.eval_shape(Linen().init, jax.random.key(0), shape(1, 2, 6))
    layers = linear_layers(variables)
    assert layers == linear_layers(variables["params"])
    assert layers["blocks_0/attention/query"] == (6, 2, 3)
    assert layers["blocks_1/up"] == (6, 6)
    assert list(layers)[-1] == "head"
    assert len(layers) == 2 * 5 + 1


class Nnx(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.blocks = nnx.List([nnx.Linear(4, 6, rngs=rngs), nnx.Linear(6, 4, rngs=rngs)])
        self.attention = nnx.MultiHeadAttention(2, 4, rngs=rngs)
        self.norm = nnx.LayerNorm(4, rngs=rngs)


def test_nnx_module_state_and_dictionary_say_the_same():
    model = Nnx(nnx.Rngs(0))
    layers = linear_layers(model)
    assert layers["blocks_0"] == (4, 6)
    assert layers["attention/value"] == (4, 2, 2)
    assert len(layers) == 6
    state = nnx.state(model, nnx.Param)
    assert linear_layers(state) == layers
    assert linear_layers(nnx.to_pure_dict(state)) == layers
    assert linear_layers(nnx.eval_shape(lambda: Nnx(nnx.Rngs(0)))) == layers


def test_blocks_come_in_the_order_of_their_numbers():
    tree = {f"blocks_{i}": {"up": kernel(2, 2)} for i in range(12)} | {"a": kernel(2, 2)}
    assert list(linear_layers(tree)) == [*(f"blocks_{i}/up" for i in range(12)), "a"]


def test_only_kernels_of_two_axes_or_more_are_linear():
    tree = {"conv": {"weight": shape(4, 8)}, "gate": {"kernel": shape(8)}, "up": kernel(8, 2)}
    assert linear_layers(tree) == {"up": (8, 2)}


def test_parameters_are_floating_point_numbers():
    tree = {"up": kernel(8, 2), "step": jax.ShapeDtypeStruct((3,), jnp.int32), "name": "x"}
    assert count_parameters(tree) == 16

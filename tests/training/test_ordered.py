"""Sums in one order: the same bits on every mesh of data, fsdp and tensor."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from nvfp4_jax.compiled.proof import prove
from nvfp4_jax.training import UsageError
from nvfp4_jax.training.data import training_batches
from nvfp4_jax.training.engine import Engine
from nvfp4_jax.training.mesh import make_mesh, parse_mesh
from nvfp4_jax.training.ordered import ROWS, tree_sum
from nvfp4_jax.training.prepare import prepare
from nvfp4_jax.training.resume import begin

from . import micro

ALL_LAYERS = micro.RECIPE.replace('match = "blocks_1/mlp/up"', 'match = "blocks_*/**"')
STEPS = 4
SHARED = {"sum_parts": 4, "feature_parts": 2}


@pytest.mark.parametrize("mesh", ["data=1", "data=8", "data=2,fsdp=2", "fsdp=4"])
def test_a_tree_is_the_same_on_every_mesh(mesh):
    """Numbers whose sum depends on its order, in a shape that no mesh divides."""
    draw = np.random.default_rng(0)
    scale = 10.0 ** draw.integers(-4, 4, size=(8, 7, 3))
    parts = (draw.normal(size=(8, 7, 3)) * scale).astype(np.float32)
    pairs = [parts[i] + parts[i + 1] for i in range(0, 8, 2)]
    expected = (pairs[0] + pairs[1]) + (pairs[2] + pairs[3])
    devices = make_mesh(parse_mesh(mesh))
    cut = jax.device_put(parts, NamedSharding(devices, PartitionSpec(ROWS)))
    everywhere = NamedSharding(devices, PartitionSpec())
    summed = jax.jit(lambda parts: tree_sum(parts, everywhere))(cut)
    assert (np.asarray(summed) == expected).all()
    assert (np.asarray(tree_sum(jnp.asarray(parts))) == expected).all()


def is_the_recipe(phase, compiled):
    """What `nvfp4 train` asks of every step before it runs; each device has one part alone too."""
    assert not prove(compiled.as_text(), phase.table).fallbacks


def trained(inputs, folder, mesh, **changes):
    """(losses and norms, parameters) of a few steps on a mesh, all layers in NVFP4."""
    recipe, model = inputs / "all.toml", inputs / "two-groups.json"
    recipe.write_text(ALL_LAYERS)
    model.write_text(json.dumps(micro.MODEL | {"groups": 2, "mamba_head_dim": 16}))
    options = {"recipe": str(recipe), "model": str(model), "length": 64} | SHARED | changes
    run = prepare(micro.config(inputs, folder, mesh=mesh, **options))
    state, _ = begin(run, print)
    engine = Engine(run, [], judge=is_the_recipe)
    batches = training_batches(run.corpus.train, batch=4, length=64, seed=0)
    told = []
    for step in range(STEPS):
        state, measured = engine.step(state, step, next(batches))
        told.append((float(measured.loss), float(measured.grad_norm)))
    return told, jax.device_get(state.parameters)


@pytest.fixture(scope="module")
def alone(inputs, tmp_path_factory):
    """What one device makes of it."""
    return trained(inputs, tmp_path_factory.mktemp("alone"), None)


@pytest.mark.parametrize("mesh", ["data=2,fsdp=2", "data=2,tensor=2"])
def test_training_is_the_same_to_the_bit_on_one_device_and_on_four(alone, inputs, tmp_path, mesh):
    told, parameters = alone
    told_there, there = trained(inputs, tmp_path, mesh)
    assert told == told_there
    for path, array in parameters.items():
        np.testing.assert_array_equal(array, there[path], err_msg=path)


def test_it_is_the_same_training(inputs, tmp_path):
    """But for the order of sums, ordered or not is the same; in microbatches and a loop too."""
    changes = {"microbatches": 2, "sum_parts": 2, "scan": "on", "remat": "block"}
    told, _ = trained(inputs, tmp_path, None, **changes)
    no_order = {"sum_parts": None, "feature_parts": None}
    plain, _ = trained(inputs, tmp_path, None, **changes | no_order)
    np.testing.assert_allclose(told[0], plain[0], rtol=1e-5)
    np.testing.assert_allclose(told, plain, rtol=3e-2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sum_parts": 3}, "--sum-parts 3: give a power of two"),
        ({"sum_parts": 0}, "--sum-parts 0: give a power of two"),
        ({"sum_parts": 8}, "must divide the 4 rows"),
        ({"sum_parts": 2, "mesh": "data=4"}, "a multiple of the 4 devices"),
        (SHARED | {"mesh": "tensor=2"}, "groups = 1, which tensor=2 does not divide"),
        ({"sum_parts": 4, "mesh": "tensor=2"}, "give --feature-parts, a multiple of tensor=2"),
        ({"sum_parts": 4, "mesh": "sequence=2"}, "leave out sequence"),
        ({"sum_parts": 4, "feature_parts": 0}, "--feature-parts 0: give a power of two"),
        ({"sum_parts": 4, "feature_parts": 3}, "--feature-parts 3: give a power of two"),
        ({"sum_parts": 4, "feature_parts": 64}, "blocks_0/mamba/in_proj has 50 features out"),
        ({"feature_parts": 2}, "--feature-parts 2 is for --sum-parts"),
        ({"sum_parts": 4, "mesh": "fsdp=2", "gather": "packed"}, "leave out --gather packed"),
        ({"sum_parts": 4, "length": 24}, "blocks_1/mlp/up rotates blocks of 16 tokens"),
        ({"sum_parts": 4, "recipe": "nvfp4-packed", "length": 64}, "keeps packed residuals"),
    ],
)
def test_what_cannot_be_ordered_is_refused(inputs, tmp_path, changes, message):
    with pytest.raises(UsageError, match=message):
        prepare(micro.config(inputs, tmp_path, **changes))

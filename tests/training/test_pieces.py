"""Sums in one order as GPUs take them: one piece after the other, here on simulated devices."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from nvfp4_jax import ordered_product
from nvfp4_jax.kernels.one_by_one import one_by_one
from nvfp4_jax.models import cutting
from nvfp4_jax.models.pieces import in_pieces
from nvfp4_jax.training import UsageError, ordered, parts
from nvfp4_jax.training.data import training_batches
from nvfp4_jax.training.engine import Engine
from nvfp4_jax.training.mesh import make_mesh, parse_mesh
from nvfp4_jax.training.pieces import one_at_a_time
from nvfp4_jax.training.prepare import prepare
from nvfp4_jax.training.resume import begin

from . import micro

MESHES = ["data=2,fsdp=2", "data=2,tensor=2", "tensor=4"]
PARTS, ROWS, TOKENS, FEATURES = 4, 2, 3, 8
MODEL = {"groups": 2, "mamba_head_dim": 16, "attention_heads": 4, "kv_heads": 2, "head_dim": 8}


def scaled(x, weight, document):
    """Rows, features and numbers that have no gradient; all of it exact."""
    return jnp.where(document[..., None] > 0, x * weight[None, None] + x, 0)


def operands():
    draw = np.random.default_rng(0)
    x = draw.integers(-8, 8, (PARTS, ROWS, TOKENS, FEATURES)).astype(np.float32)
    weight = draw.integers(-8, 8, FEATURES).astype(np.float32)
    return x, weight, draw.integers(0, 2, (PARTS, ROWS, TOKENS)).astype(np.int32)


@pytest.mark.parametrize("mesh", [None, *MESHES])
def test_a_piece_has_one_size_on_every_mesh(mesh):
    """Values and gradients, one of a weight for each part of the rows, are those of the whole."""
    seen, (x, weight, document) = [], operands()
    devices = None if mesh is None else make_mesh(parse_mesh(mesh))

    def watched(x, weight, document):
        seen.append((x.shape, weight.shape, document.shape))
        return scaled(x, weight, document)

    def of_part(x, weight, document):
        own = (x, 2), (weight, 0), (document, None)
        return jnp.sum(in_pieces(watched, *own, result=2) ** 2)

    def every(x, weight, document):
        each = jax.vmap(jax.value_and_grad(of_part, (0, 1)), (0, None, 0))
        with cutting(one_at_a_time(devices, 4)):
            return each(x, weight, document)

    def plainly(x, weight, document):
        return jnp.sum(scaled(x, weight, document) ** 2)

    found = jax.jit(every)(x, weight, document)
    wanted = jax.vmap(jax.value_and_grad(plainly, (0, 1)), (0, None, 0))(x, weight, document)
    jax.tree.map(np.testing.assert_array_equal, found, wanted)
    piece = (ROWS, TOKENS, FEATURES // 4), (FEATURES // 4,), (ROWS, TOKENS)
    whole = (ROWS, TOKENS, FEATURES), (FEATURES,), (ROWS, TOKENS)
    assert set(seen) == {piece, whole}  # whole only where a map is traced that is then replaced


def test_without_a_rule_a_piece_is_the_function_itself():
    x, weight, document = (jnp.asarray(array) for array in operands())
    own = (x[0], 2), (weight, 0), (document[0], None)
    y = in_pieces(scaled, *own, result=2)
    np.testing.assert_array_equal(y, scaled(x[0], weight, document[0]))


@pytest.mark.parametrize(
    "cut", [("data", "tensor", None), ("tensor", "data", "fsdp"), ("fsdp",) * 3]
)
def test_products_one_by_one_are_the_products(cut):
    """Whoever has which: sums, rows and columns cut over the mesh, rows and columns alike too."""
    mesh = make_mesh(parse_mesh("data=2,fsdp=2,tensor=2"))
    draw = np.random.default_rng(0)
    a, b = (draw.integers(-4, 4, (2, 2, 5, 16)).astype(np.float32) for _ in range(2))
    sums, rows, columns = cut
    sums = None if sums == rows else sums
    placed = [
        jax.device_put(jnp.asarray(x, jnp.bfloat16), NamedSharding(mesh, PartitionSpec(sums, own)))
        for x, own in ((a, rows), (b, columns))
    ]
    y = jax.jit(one_by_one)(*placed)
    np.testing.assert_array_equal(y, np.einsum("srhk,scwk->srchw", a, b))


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """No GPU is traced for; ordered sums are taken as if one were."""
    for module in (ordered, ordered_product, parts):
        monkeypatch.setattr(module, "capability", lambda: (9, 0))


def first_step(inputs, folder, mesh):
    """(loss, gradients) of the first step of a model with every kind of layer."""
    model = inputs / "every.json"
    model.write_text(json.dumps(micro.MODEL | MODEL | {"pattern": "M-*"}))
    options = {"model": str(model), "recipe": "bf16", "sum_parts": 2, "feature_parts": 2}
    run = prepare(micro.config(inputs, folder, mesh=mesh, **options))
    state, _ = begin(run, print)
    batch = next(training_batches(run.corpus.train, batch=4, length=32, seed=0))
    return jax.device_get(Engine(run, []).gradients(state, 0, batch))


def test_a_step_is_the_same_on_one_device_and_on_four(as_on_a_gpu, inputs, tmp_path):
    loss, gradients = first_step(inputs, tmp_path, None)
    loss_there, there = first_step(inputs, tmp_path, "data=2,tensor=2")
    assert loss == loss_there
    for path, array in gradients.items():
        np.testing.assert_array_equal(array, there[path], err_msg=path)


def test_heads_that_pieces_would_cut_are_refused(as_on_a_gpu, inputs, tmp_path):
    with pytest.raises(UsageError, match="groups = 1, which it does not divide; give fewer"):
        prepare(micro.config(inputs, tmp_path, sum_parts=2, feature_parts=2))

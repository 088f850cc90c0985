"""The report of what a recipe does to a model."""

from __future__ import annotations

import json
import time
from math import prod

import pytest
from flax import nnx

from nvfp4_jax import models
from nvfp4_jax.precision import GEMMS, OPERANDS_OF
from nvfp4_jax.recipe import Recipe, RecipeError, available, linear_layers, load_recipe

from .malformed import HEAD, REST
from .trees import kernel, nano_12b, shape


@pytest.mark.parametrize("name", available())
def test_a_12b_is_explained_in_seconds_from_shapes_alone(name):
    start = time.process_time()
    explanation = load_recipe(name).explain(nano_12b())
    lines = str(explanation).split("\n")
    assert time.process_time() - start < 5
    assert explanation.num_blocks == 62
    assert max(map(len, lines)) <= 130
    assert len(lines) < 60  # one screen, or two


def test_every_layer_has_its_row_when_asked():
    explanation = load_recipe("nvfp4-12b").explain(nano_12b())
    text = explanation.text(every_layer=True)
    assert len(explanation.layers) == 28 * 2 + 28 * 2 + 6 * 4 + 1
    assert all(f"\n{layer.path} " in text for layer in explanation.layers)


def test_folded_rows_speak_for_every_layer_once():
    text = str(load_recipe("nvfp4-12b").explain(nano_12b()))
    row = next(line for line in text.split("\n") if line.startswith("blocks_2..51/mamba/in_proj"))
    assert row.split() == [
        *("blocks_2..51/mamba/in_proj", "23", "5120x22656", "2", "nvfp4"),
        *("nvfp4,", "nvfp4", "16x16", "nvfp4", "sr8,", "nvfp4", "16x16"),
        *("nvfp4", "rht16,", "nvfp4", "rht16", "sr8"),
    ]
    counts = [
        int(line.split()[1]) for line in text.split("\n") if line.startswith(("blocks_", "head"))
    ]
    assert sum(counts) == 137


def test_an_exception_in_the_middle_splits_the_run():
    text = HEAD + '[[rule]]\nblocks = { index = [2] }\nprecision = "bf16"\n' + REST
    tree = {f"blocks_{i}": {"up": kernel(4, 8)} for i in range(5)}
    shown = str(Recipe.from_text(text, "test").explain(tree))
    names = [line.split()[0] for line in shown.split("\n") if line.startswith("blocks_")]
    assert names == ["blocks_0..1/up", "blocks_2/up", "blocks_3..4/up"]


def test_the_json_holds_everything():
    recipe = load_recipe("nemotron-3")
    tree = nano_12b()
    explanation = recipe.explain(tree)
    report = json.loads(explanation.to_json())
    assert report["recipe"] == {
        "name": "nemotron-3",
        "source": "recipes/nemotron-3.toml",
        "digest": recipe.digest,
    }
    assert {x["layer"]: tuple(x["shape"]) for x in report["layers"]} == linear_layers(tree)
    for row in report["layers"]:
        resolved = recipe.resolve(row["layer"], num_blocks=62)
        assert (row["rule"], row["reason"]) == (resolved.rule, resolved.reason)
        assert row["precision"] == resolved.precision_name
        for gemm in GEMMS:
            operands = getattr(resolved.precision, gemm)
            assert row[gemm] == {name: str(getattr(operands, name)) for name in OPERANDS_OF[gemm]}
    assert report["precisions"]["nvfp4"]["wgrad"]["grad"]["rounding"] == "stochastic"
    assert report["summary"]["linear_parameters"] == sum(map(prod, linear_layers(tree).values()))
    assert report["summary"]["share_by_format"] == explanation.share_by_format()


def test_shares_are_of_floating_point_operations():
    text = """
    [precision.half.fprop]
    input = { format = "nvfp4" }
    weight = { format = "nvfp4" }
    [precision.half.dgrad]
    weight = { format = "mxfp4" }
    [[rule]]
    match = "blocks_*/**"
    precision = "half"
    [[rule]]
    match = "**"
    precision = "bf16"
    """
    tree = {"blocks_0": {"up": kernel(3, 10)}, "head": kernel(10, 7)}
    explanation = Recipe.from_text(text, "half").explain(tree)
    # 30 parameters in the block, of which Fprop, Dgrad, Wgrad: nvfp4, mixed, bf16; 70 in the head.
    assert explanation.share_by_format() == {
        "bf16": (30 + 3 * 70) / 300,
        "nvfp4": 30 / 300,
        "bf16 x mxfp4": 30 / 300,
    }
    assert explanation.share_by_format(blocks_only=True)["nvfp4"] == pytest.approx(1 / 3)
    assert explanation.share_by_precision() == {"bf16": 0.7, "half": 0.3}


def test_parameters_count_the_whole_model():
    tree = {"blocks_0": {"up": kernel(3, 10)}, "norm": {"scale": shape(5)}}
    assert Recipe.from_text(HEAD + REST, "test").explain(tree).parameters == 35


def test_it_names_the_schedule_the_evaluation_and_what_is_used_nowhere():
    text = load_recipe("nvfp4-late-bf16").text.replace("evaluation]", "evaluation]  # comment")
    shown = str(Recipe.from_text(text + HEAD.replace("low", "spare"), "test").explain(nano_12b()))
    assert "schedule: from 0.82: fprop in bf16" in shown
    assert "evaluation: bf16" in shown
    assert "defined and used nowhere: spare" in shown


def test_what_does_not_fit_raises():
    with pytest.raises(RecipeError, match=r"rule 1\.blocks\.last .* out of range: the model has 2"):
        load_recipe("nvfp4-12b").explain({f"blocks_{i}": {"up": kernel(4, 8)} for i in range(2)})


@pytest.mark.parametrize("preset", ["tiny", "transformer-1b2"])
def test_our_own_models_are_covered(preset):
    config = models.preset(preset)
    model = nnx.eval_shape(lambda: models.Hybrid(config, rngs=nnx.Rngs(0)))
    for name in available():
        layers = load_recipe(name).explain(model).layers
        assert [layer.path for layer in layers if layer.block is None] == ["head"]

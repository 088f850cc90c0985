"""What a run tells of its compiled step, and that it refuses one that is not what was asked."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from nvfp4_jax import models, rounding
from nvfp4_jax.cli import main
from nvfp4_jax.compiled.proof import Proof
from nvfp4_jax.recipe import RecipeError, load_recipe
from nvfp4_jax.training import train
from nvfp4_jax.training.model_choice import choose_model
from nvfp4_jax.training.proof import StepShape, prove_step
from tests.gpu_compile import in_process_of

from . import micro

pytestmark = pytest.mark.usefixtures("quick_to_compile")

EVERY_LAYER = """\
[precision.paper.fprop]
input  = { format = "nvfp4" }
weight = { format = "nvfp4", granularity = "16x16" }
[precision.paper.dgrad]
grad   = { format = "nvfp4", rounding = "stochastic" }
weight = { format = "nvfp4", granularity = "16x16" }
[precision.paper.wgrad]
input  = { format = "nvfp4", rht = 16 }
grad   = { format = "nvfp4", rht = 16, rounding = "stochastic" }
[[rule]]
match = "blocks_*/**"
precision = "paper"
[[rule]]
match = "**"
precision = "bf16"
"""


@pytest.fixture(scope="module")
def small(inputs, tmp_path_factory) -> dict[str, str]:
    """A model of one MLP, the quickest to compile, and the micro run's recipe for it."""
    folder = tmp_path_factory.mktemp("small")
    (folder / "model.json").write_text(json.dumps(micro.MODEL | {"pattern": "-"}))
    (folder / "recipe.toml").write_text(micro.RECIPE.replace("blocks_1", "blocks_0"))
    return {name.split(".")[0]: str(folder / name) for name in ("model.json", "recipe.toml")}


def unrounded(x, *_):
    return x


def gemms(report: dict) -> dict[tuple[str, str], str]:
    return {(g["layer"], g["gemm"]): g["format"] for g in report["gemms"]}


def test_a_run_tells_what_its_step_does_before_and_after_a_switch(inputs, tmp_path):
    workdir = tmp_path / "run"
    console = Console(file=io.StringIO())
    train(micro.config(inputs, workdir, steps=2, eval_every=9, save_every=9), console)
    before, after = (
        json.loads((workdir / f"{name}.json").read_text())
        for name in ("compiled", "compiled-from-1")
    )
    assert gemms(before)["blocks_1/mlp/up", "fprop"] == "nvfp4 emulated"
    assert gemms(after)["blocks_1/mlp/up", "fprop"] == "bf16"
    assert gemms(after)["blocks_1/mlp/up", "wgrad"] == "nvfp4 emulated"
    assert gemms(before)["head", "dgrad"] == "bf16"
    assert before["summary"]["fallbacks"] == []
    assert "fallbacks: none" in (workdir / "compiled.txt").read_text()


def test_a_step_without_the_rounding_is_refused_and_nothing_is_written(
    inputs, small, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(rounding, "round_nearest", unrounded)
    changes = small | {"compilation_cache": tmp_path / "run" / "cc"}
    with pytest.raises(SystemExit) as exit:
        main(micro.command(inputs, tmp_path / "run", **changes))
    message = capsys.readouterr().err
    assert exit.value.code == 2
    assert "blocks_0/mlp/up fprop: input is not rounded to nvfp4's E2M1" in message
    assert "--allow-fallback" in message
    assert "Traceback" not in message
    assert not [path for path in (tmp_path / "run").glob("*") if path.name != "cc"]


def test_it_may_be_allowed(inputs, small, tmp_path, monkeypatch):
    monkeypatch.setattr(rounding, "round_nearest", unrounded)
    changes = {"steps": 1, "eval_every": 9, "save_every": 9, "allow_fallback": True} | small
    train(micro.config(inputs, tmp_path / "run", **changes), Console(file=io.StringIO()))
    report = json.loads((tmp_path / "run" / "compiled.json").read_text())
    assert any("not rounded" in line for line in report["summary"]["fallbacks"])


def test_a_refused_run_leaves_no_folder(inputs, small, tmp_path, monkeypatch):
    monkeypatch.setattr(rounding, "round_nearest", unrounded)
    config = micro.config(inputs, tmp_path / "run", compilation_cache=None, **small)
    with pytest.raises(ValueError, match="does not do what recipe says"):
        train(config, Console(file=io.StringIO()))
    assert not (tmp_path / "run").exists()


def test_a_misspelt_rule_is_an_error(inputs, tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text(micro.RECIPE.replace("blocks_1/mlp/up", "blocks_1/mpl/up"))
    with pytest.raises(RecipeError, match=r"mpl.up"):
        prove_step(choose_model(str(inputs / "model.json")), load_recipe(path))


def test_explain_shows_it_as_json(small, capsys):
    files = ["--model", small["model"], "--recipe", small["recipe"]]
    words = ["explain", "--compiled", *files, "--length", "32"]
    main([*words, "--batch", "4", "--microbatches", "2", "--remat", "block", "--json"])
    report = json.loads(capsys.readouterr().out)
    assert gemms(report)["blocks_0/mlp/up", "wgrad"] == "nvfp4 emulated"
    assert sum(report["summary"]["share_by_format"].values()) == pytest.approx(1)
    assert report["implementation"].startswith("xla (triton needs an NVIDIA GPU")


def first_blocks_of_the_1b(recipe: Path) -> Proof:
    config = dataclasses.replace(models.preset("1b"), pattern="M-M-")
    shape = StepShape(batch=2, length=1024, microbatches=2, remat="linear_inputs", scan="on")
    return prove_step(config, load_recipe(recipe), gpu="b200", shape=shape)


def test_on_a_b200_every_governed_gemm_of_the_step_is_on_4_bit_tensor_cores(tmp_path):
    """The 1b, its first four blocks, scanned, with packed inputs kept over rematerialization."""
    path = tmp_path / "every.toml"
    path.write_text(EVERY_LAYER)
    proof = in_process_of("b200", first_blocks_of_the_1b, path)
    assert proof.device == "NVIDIA B200"
    assert proof.implementation == "blackwell"
    assert not proof.fallbacks
    governed = [g for g in proof.gemms if g.layer.startswith("blocks_")]
    assert len(governed) == 8 * 3
    assert {g.executors for g in governed} == {("tcgen05 block-scaled",)}
    kernels = {k for g in governed for o in g.operands for k in o.kernels}
    assert kernels
    assert all(o.found.startswith("e2m1") for g in governed for o in g.operands)

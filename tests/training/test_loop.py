"""A whole run in this process: what it leaves behind, and what it refuses to continue."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import os
import shutil
from pathlib import Path

import pytest
from rich.console import Console

from nvfp4_jax.training import Diverged, UsageError, read_parameters, train
from nvfp4_jax.training.engine import Engine
from nvfp4_jax.training.metrics import read_lines
from nvfp4_jax.training.prepare import prepare
from nvfp4_jax.training.resume import check_same_run

from . import micro

pytestmark = pytest.mark.usefixtures("quick_to_compile")


def quiet() -> Console:
    return Console(file=io.StringIO())


@pytest.fixture(scope="module")
def finished(inputs, tmp_path_factory):
    """(workdir, summary, what was printed) of a run to its end."""
    workdir = tmp_path_factory.mktemp("finished") / "a" / "run"
    printed = tmp_path_factory.mktemp("printed") / "log.txt"
    with printed.open("w") as file:
        summary = train(micro.config(inputs, workdir), Console(file=file, width=100))
    return workdir, summary, printed.read_text()


@pytest.fixture
def copy(finished, tmp_path) -> Path:
    """The finished run, to be tampered with."""
    return shutil.copytree(finished[0], tmp_path / "run")


def contents(workdir: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in workdir.iterdir() if p.is_file()}


def test_metrics_hold_the_deterministic_fields_of_every_step(finished):
    lines = read_lines(finished[0] / "metrics.jsonl")
    assert [line["step"] for line in lines] == [*range(1, micro.STEPS + 1)]
    assert all(
        list(line) == ["step", "loss", "grad_norm", "learning_rate", "tokens"] for line in lines
    )
    assert [line["tokens"] for line in lines] == [128 * line["step"] for line in lines]
    assert lines[-1]["loss"] < lines[0]["loss"]


def test_evaluations_come_when_due_and_at_the_end(finished):
    lines = read_lines(finished[0] / "evaluation.jsonl")
    assert [line["step"] for line in lines] == [4, 8, 12]
    for line in lines:
        assert line["bits_per_byte"] == pytest.approx(line["loss"] / math.log(2))
        assert line["targets"] > 0
    assert finished[1].bits_per_byte == lines[-1]["bits_per_byte"]


def test_the_workdir_tells_what_ran(inputs, finished):
    workdir, summary, _ = finished
    assert (workdir / "recipe.toml").read_text() == micro.RECIPE
    config = json.loads((workdir / "config.json").read_text())
    assert config["model"]["pattern"] == micro.MODEL["pattern"]
    assert config["training"]["steps"] == micro.STEPS
    assert "blocks_1/mlp/up" in (workdir / "explain.txt").read_text()
    assert (workdir / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert len(json.loads((workdir / "corpus.json").read_text())) == 12
    assert [line["step"] for line in read_lines(workdir / "timings.jsonl")] == [*range(1, 13)]
    assert sorted(p.name for p in (workdir / "checkpoints").iterdir()) == ["10", "12"]
    assert read_parameters(workdir)["blocks/1/mlp/up/kernel"].shape == (16, 32)
    assert summary.step == micro.STEPS
    assert not summary.stopped_by


def test_plain_lines_where_there_is_no_terminal(finished):
    printed = finished[2]
    assert "1 of 5 linear layers quantized by recipe" in printed
    assert "11 files to train on, 1 held out" in printed
    assert "step 12/12: loss" in printed
    assert "tokens/s" in printed
    assert "step 12: held out" in printed


def test_a_finished_run_is_left_as_it_is_and_compiles_nothing(inputs, copy, monkeypatch):
    before = contents(copy)
    monkeypatch.delattr(Engine, "_compile")
    summary = train(micro.config(inputs, copy), quiet())
    assert summary.step == micro.STEPS
    del before["loss.png"]  # drawn again, with another date inside
    after = contents(copy)
    assert {name: after[name] for name in before} == before


def test_a_run_cut_off_before_a_checkpoint_says_that_it_begins_again(inputs, finished, copy):
    shutil.rmtree(copy / "checkpoints")
    told = io.StringIO()
    train(micro.config(inputs, copy), Console(file=told))
    again = "beginning again: of the steps in metrics.jsonl there is no checkpoint"
    assert again in told.getvalue()
    assert (copy / "metrics.jsonl").read_bytes() == (finished[0] / "metrics.jsonl").read_bytes()


def test_a_summary_counts_steps_whose_lines_were_lost(inputs, copy):
    (copy / "metrics.jsonl").unlink()
    summary = train(micro.config(inputs, copy), quiet())
    assert (summary.step, summary.tokens, summary.loss) == (micro.STEPS, 128 * micro.STEPS, None)
    assert str(summary).startswith(f"done: {micro.STEPS} steps, {128 * micro.STEPS:,} tokens, ")


def test_a_torn_checkpoint_is_set_aside_and_the_one_before_used(inputs, finished, copy):
    """From step 10 on, past the recipe's switch at 6: the same lines and the same parameters."""
    (array,) = (copy / "checkpoints" / "12" / "state" / "d").iterdir()
    os.truncate(array, 100)
    for name in ("parameters.safetensors", "evaluation.jsonl"):
        (copy / name).unlink()
    (copy / "evaluation.jsonl").write_text((finished[0] / "evaluation.jsonl").read_text())
    train(micro.config(inputs, copy), quiet())
    assert (copy / "checkpoints-unreadable" / "12").is_dir()
    for name in ("metrics.jsonl", "evaluation.jsonl", "parameters.safetensors"):
        assert (copy / name).read_bytes() == (finished[0] / name).read_bytes(), name


def test_what_ends_in_an_evaluation_loses_no_step_and_makes_up_for_it(
    inputs, finished, tmp_path, monkeypatch
):
    cut = tmp_path / "cut"

    def fail(*_: object) -> None:
        raise MemoryError("no memory is left")

    with monkeypatch.context() as patched:
        patched.setattr(Engine, "evaluate", fail)
        with pytest.raises(MemoryError):
            train(micro.config(inputs, cut), quiet())
    assert [line["step"] for line in read_lines(cut / "metrics.jsonl")] == [1, 2, 3, 4]
    assert (cut / "checkpoints" / "4").is_dir()
    train(micro.config(inputs, cut), quiet())
    for name in ("metrics.jsonl", "evaluation.jsonl", "parameters.safetensors"):
        assert (cut / name).read_bytes() == (finished[0] / name).read_bytes(), name


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seed": 1}, "another training: seed was 0, is 1"),
        ({"batch": 8}, "batch was 4, is 8"),
        ({"steps": 20}, "steps was 12, is 20, warmup was 1, is 2"),
        ({"recipe": "bf16"}, "another recipe: 'recipe', not 'bf16'.*--force-recipe"),
        ({"model": "tiny"}, "another model: pattern was 'M-'"),
        ({"data": None}, "the text has changed .* it was .*/text, and is the standard library"),
    ],
)
def test_another_run_in_the_workdir_is_refused_and_untouched(inputs, copy, changes, words):
    before = contents(copy)
    with pytest.raises(UsageError, match=f"--workdir {copy}.*{words}"):
        train(micro.config(inputs, copy, **changes), quiet())
    assert contents(copy) == before


def test_a_checkpoint_that_knows_fewer_choices_is_continued(inputs, tmp_path):
    """One that an older version wrote: what it could not choose was left out."""
    run = prepare(micro.config(inputs, tmp_path))
    before = run.describe()
    for name in ("sum_parts", "feature_parts"):
        del before["training"][name]
    check_same_run(run, before)
    parts = prepare(micro.config(inputs, tmp_path, sum_parts=2))
    with pytest.raises(UsageError, match="another training: sum_parts was None, is 2"):
        check_same_run(parts, before)


def test_a_changed_line_and_a_changed_file_are_named(inputs, copy, tmp_path):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(micro.RECIPE.replace("from = 0.5", "from = 0.75"))
    with pytest.raises(UsageError, match=r"line 14 was 'from = 0.5', is 'from = 0.75'"):
        train(micro.config(inputs, copy, recipe=str(recipe)), quiet())
    config = micro.config(inputs, copy, recipe=str(recipe), force_recipe=True)
    assert train(config, quiet()).step == micro.STEPS
    text = shutil.copytree(inputs / "text", tmp_path / "text")
    (text / "00.txt").write_text("something else")
    moved = dataclasses.replace(config, data=text)
    with pytest.raises(UsageError, match=r"the text has changed"):
        train(moved, quiet())


def test_comments_of_a_recipe_may_change(inputs, copy, tmp_path):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text("# a remark\n" + micro.RECIPE)
    assert train(micro.config(inputs, copy, recipe=str(recipe)), quiet()).step == micro.STEPS
    assert (copy / "recipe.toml").read_text().startswith("# a remark")


def test_a_run_that_diverges_stops_and_names_a_layer(inputs, tmp_path):
    small = {"pattern": "-", "hidden": 16, "vocabulary": 256, "ffn": 32}  # quick to compile
    (tmp_path / "model.json").write_text(json.dumps(small))
    changes = {"model": str(tmp_path / "model.json"), "recipe": "bf16", "max_skipped": 3}
    config = micro.config(inputs, tmp_path / "run", learning_rate=1e30, warmup=0, **changes)
    with pytest.raises(Diverged) as caught:
        train(config, quiet())
    message = str(caught.value)
    assert "3 steps in a row" in message
    assert "first bad: the gradient of blocks_0/mlp/" in message
    assert "try a lower --learning-rate" in message
    lines = read_lines(tmp_path / "run" / "metrics.jsonl")
    assert [line.get("skipped", False) for line in lines[-3:]] == [True] * 3
    assert lines[-1]["grad_norm"] is None

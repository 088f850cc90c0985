"""Commands that succeed: help, explain, and a comparison from two recipes to a picture."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

from nvfp4_jax.cli import _COMMANDS, Bench, Data, main
from nvfp4_jax.recipe import available
from nvfp4_jax.training import compare as comparison
from nvfp4_jax.training import distributed
from nvfp4_jax.training.errors import Interrupted

from ..training import micro

pytestmark = pytest.mark.usefixtures("quick_to_compile")


@pytest.mark.parametrize("argv", [["--help"], ["-h"]])
def test_help_lists_the_commands(argv, capsys):
    main(argv)
    output = capsys.readouterr().out
    assert all(command in output for command in ("train", "explain", "compare", "data", "bench"))


OPTIONS = [
    *(kind for kind, _ in _COMMANDS.values() if dataclasses.is_dataclass(kind)),
    *(task.__origin__ for kind in (Bench, Data) for task in get_args(kind)),
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: options.__name__)
def test_help_explains_every_flag(options):
    """In its own or an ancestor's docstring, each by itself: so tyro reads it."""
    told = "".join(vars(kind).get("__doc__") or "" for kind in options.__mro__)
    explained = set(re.findall(r"^ {6}(\w+): \S", told, re.MULTILINE))
    assert {field.name for field in dataclasses.fields(options)} <= explained


@pytest.mark.parametrize("command", ["train", "explain", "compare", "plan"])
def test_help_of_a_command_has_its_flags(command, capsys):
    with pytest.raises(SystemExit) as exit:
        main([command, "--help"])
    assert exit.value.code == 0
    output = capsys.readouterr().out
    assert "--model" in output
    assert "--no-" not in output


@pytest.mark.parametrize("benchmark", ["quantizers", "linear", "memory", "step", "all"])
def test_help_of_a_benchmark_explains_every_flag(benchmark, capsys):
    with pytest.raises(SystemExit) as exit:
        main(["bench", benchmark, "--help"])
    assert exit.value.code == 0
    assert "--json" in capsys.readouterr().out


@pytest.mark.parametrize(("task", "flag"), [("prepare", "--tokenizer"), ("verify", "SHA-256")])
def test_help_of_data_explains_every_flag(task, flag, capsys):
    with pytest.raises(SystemExit) as exit:
        main(["data", task, "--help"])
    assert exit.value.code == 0
    assert flag in capsys.readouterr().out


def test_explain_the_12b_in_seconds(capsys):
    began = time.process_time()
    main(["explain", "--model", "nano-12b-v2", "--recipe", "nvfp4-12b"])
    assert time.process_time() - began < 10
    output = capsys.readouterr().out
    assert "62 blocks" in output
    assert "12,310,001,152 parameters" in output
    assert "blocks_2..51/mamba/in_proj" in output


def test_explain_every_layer_and_as_json(capsys):
    main(["explain", "--model", "tiny", "--all"])
    rows = capsys.readouterr().out
    assert all(f"blocks_{i}/" in rows for i in range(9))
    main(["explain", "--model", "tiny", "--json"])
    layers = json.loads(capsys.readouterr().out)["layers"]
    assert len(layers) == 21


@pytest.mark.parametrize("recipe", available())
def test_every_shipped_recipe_explains_tiny(recipe, capsys):
    main(["explain", "--model", "tiny", "--recipe", recipe])
    assert f"recipe {recipe}" in capsys.readouterr().out


def test_compare(tmp_path, capsys):
    inputs = micro.write_inputs(tmp_path / "inputs")
    words = micro.command(inputs, tmp_path / "out", steps=4)[1:]
    at = words.index("--recipe")
    recipe = words.pop(at + 1)
    before, _, after = micro.RECIPE.partition("[[schedule]]")
    Path(recipe).write_text(before + after[after.index("[evaluation]") :])  # one phase to compile
    words.pop(at)
    argv = ["compare", "bf16", recipe, "--seeds", "2", *words]
    main(argv)
    output = capsys.readouterr().out
    rows = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert [row["recipe"] for row in rows] == ["bf16", "recipe"]
    assert rows[0]["gaps"] == [0, 0]
    first, second = (row["bits_per_byte"] for row in rows)
    assert rows[1]["gaps"] == pytest.approx([b / a - 1 for a, b in zip(first, second, strict=True)])
    assert rows[1]["gaps"][0] != rows[1]["gaps"][1]
    assert (tmp_path / "out" / "compare.txt").read_text() in output
    assert (tmp_path / "out" / "compare.png").read_bytes().startswith(b"\x89PNG")
    for name in ("bf16-seed0", "bf16-seed1", "recipe-seed0", "recipe-seed1"):
        assert (tmp_path / "out" / name / "metrics.jsonl").read_bytes().count(b"\n") == 4
    main(argv)  # all four runs are there: nothing is trained again
    assert "step 4/4" not in capsys.readouterr().out


def test_processes_of_an_interrupted_comparison_end_together(tmp_path, monkeypatch):
    """None leaves the others, which have stopped too, to find out by themselves."""
    ended = []

    @contextlib.contextmanager
    def joined(*_: object) -> Iterator[None]:
        yield
        ended.append("together")

    def stopped(*_: object) -> None:
        raise Interrupted

    monkeypatch.setattr(distributed, "joined", joined)
    monkeypatch.setattr(comparison, "compare", stopped)
    with pytest.raises(SystemExit) as exit:
        main(["compare", "bf16", "nvfp4", "--workdir", str(tmp_path / "out")])
    assert exit.value.code == 130
    assert ended == ["together"]


@pytest.mark.parametrize("line", ["explain --model tiny", "train --help"])
def test_output_that_nobody_reads_on_ends_the_command_quietly(line):
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "nvfp4_jax", *line.split()]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}  # else a GPU's plugin may complain
    try:
        done = subprocess.run(
            command, stdout=writing, stderr=subprocess.PIPE, env=environment, timeout=100
        )
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")

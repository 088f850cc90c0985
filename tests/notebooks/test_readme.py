"""What the README says can be typed in, read in a file or seen in a report: it is so."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from nvfp4_jax import cli
from nvfp4_jax.models import preset
from nvfp4_jax.recipe import Recipe, load_recipe
from nvfp4_jax.training.state import abstract_model

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    """The fenced blocks of one language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, flags=re.MULTILINE | re.DOTALL)


def commands() -> list[list[str]]:
    """Every `nvfp4 COMMAND ...` in a block or between backticks, as its words."""
    inline = re.findall(r"`(nvfp4 [^`]+)`", TEXT)
    typed = re.findall(
        r"\bnvfp4 (?:train|explain|compare|data|bench) [^\n#&`]+", "\n".join(blocks("bash"))
    )
    return [command.split()[1:] for command in inline + typed]


@pytest.mark.parametrize("code", blocks("python"), ids=["linen", "nnx", "numerics"])
def test_a_python_block_runs_alone(code, tmp_path):
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=tmp_path,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    expected = [line[2:] for line in code.splitlines() if line.startswith("# ")]
    assert all(line in ran.stdout for line in expected)


def test_the_recipe_shown_means_what_the_file_means():
    (text,) = blocks("toml")
    assert Recipe.from_text(text, "README").digest == load_recipe("nvfp4").digest


def test_the_report_shown_is_a_part_of_the_real_one():
    config = preset("tiny")
    report = str(load_recipe("nvfp4").explain(abstract_model(config), config.num_blocks))
    shown, *_ = blocks("text")
    real = report.splitlines()
    assert [line for line in shown.splitlines() if line not in real] == []


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_a_command_has_the_options_it_is_shown_with(words, capsys):
    parts = 2 if words[0] in ("bench", "data") else 1  # a benchmark is a command of its own
    command, rest = words[:parts], words[parts:]
    with pytest.raises(SystemExit) as stopped:
        cli.main([*command, "--help"])
    assert stopped.value.code == 0
    described = capsys.readouterr().out
    assert [w for w in rest if w.startswith("--") and f"{w} " not in described] == []


def test_every_shipped_recipe_and_preset_is_named():
    from nvfp4_jax.models import PRESETS

    names = [*PRESETS, *(path.stem for path in (ROOT / "recipes").glob("*.toml"))]
    assert [name for name in names if f"`{name}`" not in TEXT] == []


def test_set_up_commands_differ_by_their_extra_and_what_they_run():
    train, test = (
        block for block in blocks("bash") if block.startswith("python3 -m venv .venv && ")
    )
    assert train.split(" && ")[:2] == test.split(" && ")[:2]
    assert test.split(" && ")[2] == train.split(" && ")[2].replace("-e .", "-e '.[dev]'")

"""Bad requests: exit status 2, one message with place and remedy, no traceback, nothing written."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from nvfp4_jax.cli import main

from ..recipe.malformed import CASES as RECIPES
from ..recipe.malformed import Malformed
from .commands import CASES, MALFORMED_MODEL, RECIPE_FOR_ANOTHER_MODEL


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "file.txt").write_text("a file")
    (tmp_path / "model.json").write_text(MALFORMED_MODEL)
    (tmp_path / "recipe.toml").write_text(RECIPE_FOR_ANOTHER_MODEL)
    (tmp_path / "empty").mkdir()
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "train-00000.npy").touch()
    (tmp_path / "lines.jsonl").write_text('{"text": "a line"}\n{"text": \n')
    return tmp_path


def words(message: str) -> str:
    """The message without the box that tyro draws around it, on one line."""
    return " ".join(message.translate(dict.fromkeys(map(ord, "│╭╮╰╯─"), " ")).split())


def check(status: int | str | None, output: str, message: str, parts: tuple[str, ...]) -> None:
    assert status == 2
    assert output == ""
    assert "Traceback" not in message
    for part in parts:
        assert part in words(message), message


def listing(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


@pytest.mark.parametrize("name", CASES)
def test_command_line(name, folder, capsys):
    line, parts = CASES[name]
    before = listing(folder)
    with pytest.raises(SystemExit) as exit:
        main(line.format(tmp=folder).split())
    captured = capsys.readouterr()
    check(exit.value.code, captured.out, captured.err, parts)
    assert captured.err.count("nvfp4 ") <= 4  # one message, with at most its own usage hints
    assert listing(folder) == before


@pytest.mark.parametrize("case", RECIPES, ids=lambda case: case.name)
@pytest.mark.parametrize("command", ["train --workdir {tmp}/run", "explain"])
def test_recipe(case: Malformed, command, folder, capsys):
    path = case.write(folder)
    before = listing(folder)
    with pytest.raises(SystemExit) as exit:
        main([*command.format(tmp=folder).split(), "--recipe", str(path)])
    captured = capsys.readouterr()
    assert captured.err.startswith(f"nvfp4 {command.split()[0]}: {path}")
    assert captured.err.count("\n") == 1
    check(exit.value.code, captured.out, "", ())
    assert case.remedy in captured.err
    assert case.place in captured.err
    assert listing(folder) == before


@pytest.mark.parametrize("name", ["unknown-command", "misspelt-flag", "unknown-model"])
def test_as_a_process(name, folder):
    line, parts = CASES[name]
    command = [sys.executable, "-m", "nvfp4_jax", *line.format(tmp=folder).split()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    check(done.returncode, done.stdout, done.stderr, parts)
    assert not (folder / "run").exists()


def test_the_cases_are_many():
    assert len(CASES) >= 20
    assert len(RECIPES) >= 30

"""Logs: whole lines, cut back to a step, and nothing that JSON cannot hold."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from nvfp4_jax.training.metrics import Lines, read_lines


def write(path, steps, through=0):
    with Lines(path, through=through) as lines:
        for step in steps:
            lines.write(step=step, loss=1 / step)


def test_lines_are_written_as_they_come_and_read_back(tmp_path):
    path = tmp_path / "log.jsonl"
    with Lines(path, through=0) as lines:
        lines.write(step=1, loss=0.5)
        assert read_lines(path) == [{"step": 1, "loss": 0.5}]  # before it is closed
    assert read_lines(tmp_path / "missing") == []


@pytest.mark.parametrize("through", [0, 2, 5, 9])
@pytest.mark.parametrize("torn", ["", '{"step": 6, "lo'])
def test_continuing_cuts_back_to_the_restored_step(tmp_path, through, torn):
    path = tmp_path / "log.jsonl"
    write(path, range(1, 6))
    with path.open("a") as file:
        file.write(torn)
    write(path, range(through + 1, 10), through=through)
    kept = [*range(1, min(through, 5) + 1), *range(through + 1, 10)]
    assert [line["step"] for line in read_lines(path)] == kept


def test_a_torn_line_is_not_read(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1}\n{"step": 2')
    assert read_lines(path) == [{"step": 1}]


def test_numbers_that_are_not_finite_become_null(tmp_path):
    path = tmp_path / "log.jsonl"
    with Lines(path, through=0) as lines:
        lines.write(step=1, loss=math.nan, norm=math.inf)
    assert json.loads(path.read_text()) == {"step": 1, "loss": None, "norm": None}


def test_an_fp32_survives_its_nine_digits(tmp_path):
    path = tmp_path / "log.jsonl"
    values = np.random.default_rng(0).normal(size=500).astype(np.float32)
    with Lines(path, through=0) as lines:
        for i, value in enumerate(values):
            lines.write(step=i, loss=float(value))
    read = np.array([line["loss"] for line in read_lines(path)])
    assert (read.astype(np.float32) == values).all()

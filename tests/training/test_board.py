"""TensorBoard's file: every step once, with the numbers of the logs, however often a run began.

Read back by the format itself: records of length, checksum, protocol buffer, checksum.
"""

from __future__ import annotations

import importlib.util
import struct
from collections import Counter
from pathlib import Path

import pytest
from tensorboardX.proto.event_pb2 import Event

from nvfp4_jax.training import UsageError
from nvfp4_jax.training.board import TAGS, Board, check_installed
from nvfp4_jax.training.metrics import Lines, read_lines
from nvfp4_jax.training.workdir import EVALUATION, METRICS, TIMINGS


def events(workdir: Path) -> list[Event]:
    """What the folder's event files hold."""
    found = []
    for path in (workdir / "tensorboard").iterdir():
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            found.append(Event.FromString(data[12 : 12 + length]))
            data = data[16 + length :]
    return found


def scalars(workdir: Path) -> dict[tuple[str, int], float]:
    """(tag, step) -> value; a pair that is there twice fails."""
    pairs = [((v.tag, e.step), v.simple_value) for e in events(workdir) for v in e.summary.value]
    assert max(Counter(pair for pair, _ in pairs).values()) == 1
    return dict(pairs)


def run(workdir: Path, start: int, end: int) -> None:
    """Steps `start` to `end` as the loop logs them, after a restart at `start` - 1."""
    with (
        Lines(workdir / METRICS, start - 1) as metrics,
        Lines(workdir / TIMINGS, start - 1) as timings,
        Lines(workdir / EVALUATION, start - 1) as evaluations,
        Board(workdir) as board,
    ):
        for step in range(start, end + 1):
            loss = float("nan") if step == 2 else 1 / step
            line = metrics.write(step=step, loss=loss, grad_norm=2.0, learning_rate=0.5, tokens=8)
            board.write(METRICS, line)
            board.write(TIMINGS, timings.write(step=step, seconds=0.5, tokens_per_second=16.0))
            if step % 4 == 0:
                line = evaluations.write(step=step, loss=3.0, bits_per_byte=1.5, targets=7)
                board.write(EVALUATION, line)


def test_each_step_is_there_once_after_a_restart(tmp_path):
    run(tmp_path, 1, 9)
    run(tmp_path, 6, 12)  # killed after 9; the last checkpoint was of step 5
    expected = {
        (tag, line["step"]): line[field]
        for name, tags in TAGS.items()
        for line in read_lines(tmp_path / name)
        for field, tag in tags.items()
        if line[field] is not None
    }
    found = scalars(tmp_path)
    assert ("training/loss", 2) not in found  # skipped: there is no loss to show
    assert found == pytest.approx(expected, rel=1e-7)
    times = [event.wall_time for event in events(tmp_path) if event.step in (1, 3)]
    assert max(times) - min(times) == pytest.approx(1.0)  # two steps of half a second


def test_a_missing_library_is_named_with_its_extra(monkeypatch):
    check_installed()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"install nvfp4_jax\[tensorboard\]"):
        check_installed()

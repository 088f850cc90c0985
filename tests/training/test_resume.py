"""Cut off anywhere, continued by the same command: not a byte differs, and the status is right.

Real processes, as `experiments/random_kills.py` starts and kills them: that is fifty kills of one
run, and this a few of them.
"""

from __future__ import annotations

import os
import re
import resource
import signal
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest

from experiments.random_kills import (
    differing,
    finish,
    lines,
    named,
    run_command,
    run_killed,
    server,
    start,
    wait_until,
)
from nvfp4_jax.training import read_parameters
from nvfp4_jax.training.checkpoint import Checkpoints
from nvfp4_jax.training.metrics import read_lines

from . import micro


@pytest.fixture(scope="module")
def context() -> ForkServerContext:
    """Processes that start with the imports done."""
    return server()


def test_killed_at_random_equals_uninterrupted(inputs, tmp_path, context):
    kills = 5
    whole, cut, log = tmp_path / "whole", tmp_path / "cut", tmp_path / "log.txt"

    def command(workdir: Path) -> list[str]:
        return micro.command(inputs, workdir, steps=10 * kills)

    finish(start(context, command(whole), log), log)
    done = run_killed(context, command, cut, log, kills, seed=20261122)
    assert {kill.status for kill in done} <= {-signal.SIGKILL, -signal.SIGTERM, 0}
    assert len({kill.moment for kill in done}) > 2
    assert differing(whole, cut) == []
    assert lines(cut) == 10 * kills
    assert len(read_parameters(cut)) > 0
    assert sorted(path.name for path in (cut / "checkpoints").iterdir()) == [
        str(10 * kills - 2),
        str(10 * kills),
    ]
    assert not (cut / "checkpoints-unreadable").exists()
    assert "continuing from step" in log.read_text()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_saves_at_the_boundary_and_tells_by_its_status(
    inputs, tmp_path, context, number, status
):
    workdir, log = tmp_path / "run", tmp_path / "log.txt"
    process = start(context, micro.command(inputs, workdir, steps=400, save_every=400), log)
    wait_until(lambda: lines(workdir) > 3, process)
    assert process.pid
    os.kill(process.pid, number)
    process.join()
    assert process.exitcode == status, log.read_text()
    saved = [int(path.name) for path in (workdir / "checkpoints").glob("*")]
    assert saved == [lines(workdir)]
    assert f"stopped by {number.name} and saved at step {saved[0]}" in log.read_text()


def _killed_once_it_has_saved(words: list[str], log: str) -> None:
    """In a child: the command, until its first checkpoint has its name."""
    finish = Checkpoints._finish

    def finish_and_die(*arguments: Any) -> None:
        finish(*arguments)
        os.kill(os.getpid(), signal.SIGKILL)

    Checkpoints._finish = finish_and_die  # type: ignore[method-assign]
    run_command(words, log)


def _with_small_files(words: list[str], log: str, most: int) -> None:
    """In a child: the command, where no file may grow beyond `most` bytes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))
    run_command(words, log)


def test_no_room_for_a_checkpoint_is_one_message_and_costs_nothing(inputs, tmp_path, context):
    """The kernel refuses large files, as it would on a full disk; the logs still fit."""
    whole, cut, log = tmp_path / "whole", tmp_path / "cut", tmp_path / "log.txt"
    words = micro.command(inputs, cut, save_every=3)
    finish(start(context, micro.command(inputs, whole, save_every=12), log), log)
    killed = context.Process(target=_killed_once_it_has_saved, args=(words, str(log)))
    killed.start()
    killed.join()
    assert killed.exitcode == -signal.SIGKILL, log.read_text()
    saved, message = named(cut), tmp_path / "message.txt"
    limited = context.Process(target=_with_small_files, args=(words, str(message), 60_000))
    limited.start()
    limited.join()
    *_, last = message.read_text().splitlines()
    place = re.escape(f"nvfp4 train: {cut}/checkpoints/")
    assert limited.exitcode == 1, message.read_text()
    assert re.fullmatch(rf"{place}\d+: cannot save the checkpoint: File too large; .*", last)
    assert last.endswith(f"is of step {saved}")
    assert "Traceback" not in message.read_text()
    assert len(read_lines(cut / "metrics.jsonl")) == lines(cut)
    finish(start(context, words, log), log)
    assert differing(whole, cut) == []

"""Cut off anywhere, continued by the same command: not a byte differs.

Real processes, killed by SIGKILL, which no handler sees. They are forked from a server that has
imported everything, so that a start costs the restart and not eight seconds of imports.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path

import pytest

from nvfp4_jax.training import read_parameters

from . import micro

MOMENTS = ("stepping", "saving", "starting", "saving", "stepping", "saving") + 2 * (
    "stepping",
    "saving",
)
PATIENCE = 120  # seconds that a process may take before the test gives up on it


@pytest.fixture(scope="module")
def context() -> ForkServerContext:
    """Processes that start with the imports done."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["nvfp4_jax.cli", "nvfp4_jax.training.loop"])
    return context


def run_command(argv: list[str], log: str) -> None:
    """In a child: the command, as `nvfp4` would run it, its output in a file."""
    with Path(log).open("a", buffering=1) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        import jax

        from nvfp4_jax.cli import main

        jax.config.update("jax_platforms", "cpu")
        main(argv)


def start(context: ForkServerContext, argv: list[str], log: Path) -> ForkServerProcess:
    process = context.Process(target=run_command, args=(argv, str(log)))
    process.start()
    return process


def finish(process: ForkServerProcess, log: Path) -> None:
    process.join(PATIENCE)
    assert process.exitcode == 0, log.read_text()


def lines(workdir: Path) -> int:
    path = workdir / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def is_saving(workdir: Path) -> bool:
    """Whether a checkpoint is being written: orbax's temporary folder is there."""
    return any(".writing" in path.name for path in (workdir / "checkpoints").glob("*"))


def wait_until(condition, process: ForkServerProcess, seconds: float = PATIENCE) -> None:
    deadline = time.monotonic() + seconds
    while not condition() and process.is_alive() and time.monotonic() < deadline:
        time.sleep(0.0005)


def kill(process: ForkServerProcess, workdir: Path, moment: str, dice: random.Random) -> None:
    """SIGKILL while the process starts, between two steps past the last kill, or as it saves."""
    target = lines(workdir) + dice.randint(2, 8)
    if moment == "starting":
        time.sleep(dice.uniform(0, 3))
    elif moment == "stepping":
        wait_until(lambda: lines(workdir) >= target, process)
        time.sleep(dice.uniform(0, 0.02))
    else:
        wait_until(lambda: lines(workdir) >= target and is_saving(workdir), process)
    process.kill()
    process.join(PATIENCE)


def test_killed_ten_times_equals_uninterrupted(inputs, tmp_path, context):
    dice = random.Random(20261122)
    steps = 120  # ten kills, up to eight steps past the one before, fall into the run
    whole, cut, log = tmp_path / "whole", tmp_path / "cut", tmp_path / "log.txt"
    finish(start(context, micro.command(inputs, whole, steps=steps), log), log)
    statuses = []
    for moment in MOMENTS:
        process = start(context, micro.command(inputs, cut, steps=steps), log)
        kill(process, cut, moment, dice)
        statuses.append(process.exitcode)
    assert statuses == [-signal.SIGKILL] * len(MOMENTS), log.read_text()
    assert not (cut / "parameters.safetensors").exists()
    finish(start(context, micro.command(inputs, cut, steps=steps), log), log)
    for name in ("metrics.jsonl", "evaluation.jsonl", "parameters.safetensors"):
        assert (cut / name).read_bytes() == (whole / name).read_bytes(), name
    assert lines(cut) == steps
    assert len(read_parameters(cut)) > 0
    assert not is_saving(cut)
    assert log.read_text().count("continuing from step") >= MOMENTS.count("saving")


def test_sigterm_saves_at_the_boundary_and_exits_0(inputs, tmp_path, context):
    workdir, log = tmp_path / "run", tmp_path / "log.txt"
    argv = micro.command(inputs, workdir, steps=400, save_every=400)
    process = start(context, argv, log)
    wait_until(lambda: lines(workdir) > 3, process)
    os.kill(process.pid, signal.SIGTERM)
    finish(process, log)
    saved = [int(path.name) for path in (workdir / "checkpoints").glob("*")]
    assert saved == [lines(workdir)]
    assert f"stopped by SIGTERM and saved at step {saved[0]}" in log.read_text()

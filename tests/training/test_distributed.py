"""Two real processes, joined by jax on this machine: the same run, and the same ends.

They compute what one process computes on a mesh of the same shape, byte for byte: each sum over
two devices has two terms, and those may be swapped. The model is an MLP of one block, since a
process other than the first compiles anew at each start.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from experiments.random_kills import (
    COMPARED,
    differing,
    lines,
    run_command,
    server,
    wait_until,
)
from nvfp4_jax.training import train
from nvfp4_jax.training.errors import StorageError
from nvfp4_jax.training.feed import Feed

from . import micro

LOST_WITHIN_SECONDS = 60
PATIENCE = 600  # for a run to its end, on however busy a machine
LOST_IN_STEP = 40
CHANGES = {"steps": 300, "save_every": 25, "eval_every": 100, "mesh": "data=2"}


@dataclass
class Pair:
    """Two processes of a run and what they printed."""

    processes: list[ForkServerProcess]
    logs: list[Path]

    def statuses(self, seconds: float = PATIENCE) -> list[int | None]:
        """How they ended; None for one that has not, after `seconds` for each."""
        for process in self.processes:
            process.join(seconds)
        return [process.exitcode for process in self.processes]

    def text(self, process: int) -> str:
        """What one has printed, but for what Gloo says of itself."""
        log = self.logs[process]  # which it makes itself
        printed = log.read_text().splitlines(keepends=True) if log.exists() else []
        return "".join(line for line in printed if not line.startswith("[Gloo]"))

    def message(self, process: int) -> str:
        """The last line of one that has ended, once it is ours: another process passes it on."""
        deadline = time.monotonic() + LOST_WITHIN_SECONDS
        while time.monotonic() < deadline:
            last = (self.text(process).splitlines() or [""])[-1]
            if last.startswith("nvfp4: "):
                return last
            time.sleep(0.1)
        raise AssertionError(self.text(process))


@pytest.fixture(scope="module")
def context() -> ForkServerContext:
    return server()


@pytest.fixture(scope="module")
def small(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The inputs that differ from the micro run's: one block, one precision."""
    folder = tmp_path_factory.mktemp("small")
    model = {"pattern": "-", "hidden": 16, "vocabulary": 256, "ffn": 32}
    recipe = micro.RECIPE.replace("blocks_1", "blocks_0").split("[[schedule]]")[0]
    (folder / "model.json").write_text(json.dumps(model))
    (folder / "recipe.toml").write_text(recipe)
    return {"model": str(folder / "model.json"), "recipe": str(folder / "recipe.toml")}


def by_address(process: int, port: int) -> tuple[dict, dict]:
    """(flags, environment) of one of two that meet at a port."""
    return {"distributed": f"127.0.0.1:{port}", "processes": 2, "process": process}, {}


def by_slurm(process: int, port: int) -> tuple[dict, dict]:
    """The same under SLURM, of whose environment jax takes the port from the job's number."""
    told = {"JOB_ID": port - (2**16 - 2**12), "STEP_NODELIST": "localhost", "NTASKS": 2}
    told |= {"PROCID": process, "LOCALID": process, "STEP_NUM_NODES": 1}
    return {"distributed": "slurm"}, {f"SLURM_{name}": str(value) for name, value in told.items()}


def by_open_mpi(process: int, port: int) -> tuple[dict, dict]:
    """The same under Open MPI 4; version 5 is asked through mpi4py."""
    told: dict[str, Any] = {"COMM_WORLD_SIZE": 2, "COMM_WORLD_RANK": process}
    told["COMM_WORLD_LOCAL_RANK"] = process
    told["MCA_orte_hnp_uri"] = f"{(port - (2**16 - 2**12)) * 2**12}.0;tcp://127.0.0.1:34911"
    return {"distributed": "mpi"}, {f"OMPI_{name}": str(value) for name, value in told.items()}


def free_port() -> int:
    """One of those that jax chooses from under SLURM and MPI; the system gives them to nobody."""
    for port in range(2**16 - 2**12 + os.getpid() % 2000, 2**16):
        with contextlib.suppress(OSError), socket.socket() as listener:
            listener.bind(("127.0.0.1", port))
            return port
    raise RuntimeError("no port is free")


def run_in(environment: dict[str, str], words: list[str], log: str) -> None:
    """In a child: the command, as something that sets `environment` would start it."""
    os.environ.update(environment)
    run_command(words, log)


def run_losing_data(environment: dict[str, str], words: list[str], log: str) -> None:
    """The same, where from some step on no batch can be read."""
    read, steps = Feed.read_ahead, iter(range(LOST_IN_STEP))

    def losing(feed: Feed) -> None:
        if next(steps, None) is None:
            feed.failure = StorageError("cannot read train-00003.npy: Input/output error")
        else:
            read(feed)

    Feed.read_ahead = losing  # type: ignore[method-assign]
    run_in(environment, words, log)


def begin(
    context: ForkServerContext,
    inputs: Path,
    workdir: Path,
    changes: dict,
    second: dict | None = None,
    meet: Callable[[int, int], tuple[dict, dict]] = by_address,
    run_second: Callable[[dict[str, str], list[str], str], None] = run_in,
) -> Pair:
    """Start both; `second` changes what the second is told, `run_second` what it does."""
    processes, logs, port = [], [], free_port()
    for i, own in enumerate(({}, second or {})):
        flags, environment = meet(i, port)
        words = micro.command(inputs, workdir, **(changes | own | flags))
        log = workdir.with_name(f"{workdir.name}-{time.monotonic_ns()}-{i}.log")
        run = run_second if i else run_in
        process = context.Process(target=run, args=(environment, words, str(log)))
        process.start()
        processes.append(process)
        logs.append(log)
    return Pair(processes, logs)


def send(pair: Pair, process: int, number: signal.Signals, when: Callable[[], bool]) -> None:
    """Send a signal to one of them as soon as something is so."""
    wait_until(when, pair.processes[0])
    identity = pair.processes[process].pid
    assert identity
    os.kill(identity, number)


def test_two_processes_equal_one_and_end_together(inputs, small, tmp_path, context):
    changes = CHANGES | small
    one, two = tmp_path / "one", tmp_path / "two"
    train(micro.config(inputs, one, **changes), Console(file=io.StringIO()))

    pair = begin(context, inputs, two, changes)
    send(pair, 1, signal.SIGKILL, when=lambda: lines(two) > 60)
    killed = time.monotonic()
    statuses = pair.statuses(LOST_WITHIN_SECONDS)
    assert time.monotonic() - killed < LOST_WITHIN_SECONDS
    assert statuses[1] == -signal.SIGKILL
    assert statuses[0] not in (0, None), pair.text(0)
    assert pair.message(0).startswith("nvfp4: process 0 of 2: process 1 was lost")
    assert "Traceback" not in pair.text(0)

    pair = begin(context, inputs, two, changes)
    send(pair, 1, signal.SIGTERM, when=lambda: "continuing from step" in pair.text(0))
    assert pair.statuses() == [0, 0], pair.text(0) + pair.text(1)
    assert f"stopped by SIGTERM and saved at step {lines(two)};" in pair.text(0)
    assert (two / "checkpoints" / str(lines(two))).is_dir()
    assert lines(two) < CHANGES["steps"]

    pair = begin(context, inputs, two, changes)
    assert pair.statuses() == [0, 0], pair.text(0) + pair.text(1)
    assert "continuing from step" in pair.text(0)
    assert all(name in os.listdir(two) for name in COMPARED)
    assert differing(one, two) == []
    assert "step" not in pair.text(1)  # one log: the second process shows nothing


def test_data_that_one_cannot_read_stops_both_at_a_boundary(inputs, small, tmp_path, context):
    two = tmp_path / "two"
    changes = CHANGES | small | {"save_every": 300}
    pair = begin(context, inputs, two, changes, run_second=run_losing_data)
    pair.processes[1].join(PATIENCE)
    assert pair.processes[1].exitcode == 1, pair.text(1)
    said = "nvfp4: process 1 of 2: cannot read train-00003.npy: Input/output error"
    assert pair.message(1) == said
    wait_until(lambda: "stopped by SIGTERM" in pair.text(0), pair.processes[0])
    pair.processes[0].kill()  # or it would wait for the other, and miss it
    saved = lines(two)
    assert f"stopped by SIGTERM and saved at step {saved};" in pair.text(0)
    assert saved in (LOST_IN_STEP, LOST_IN_STEP + 1)
    assert (two / "checkpoints" / str(saved)).is_dir()


@pytest.mark.parametrize(
    ("meet", "second", "words"),
    [
        (by_slurm, {"eval_every": 150}, "eval_every is 100 on process 0 and 150 on process 1"),
        (by_open_mpi, {"recipe": "no-such"}, "process 1 says: no-such: no shipped recipe"),
    ],
)
def test_what_one_process_is_told_wrongly_both_refuse(
    inputs, small, tmp_path, context, meet, second, words
):
    workdir = tmp_path / "run"
    pair = begin(context, inputs, workdir, CHANGES | small, second, meet)
    assert pair.statuses() == [2, 2], pair.text(0) + pair.text(1)
    for process in range(2):
        assert words in pair.message(process)
        assert "Traceback" not in pair.text(process)
    assert not workdir.exists()

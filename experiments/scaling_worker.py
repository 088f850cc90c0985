"""What `scaling.py` starts: one process that compiles or times one program.

    python -m experiments.scaling_worker devices
    python -m experiments.scaling_worker compile TASK.json
    python -m experiments.scaling_worker time TASK.json

Compiled programs go to files, so that many can be compiled side by side, and each timed by a
process that has the GPUs for itself, takes their memory as JAX does by default, and compiles
nothing.
"""

from __future__ import annotations

import gzip
import importlib
import json
import os
import pickle
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
from jax.experimental import serialize_executable

from nvfp4_jax.training import lone_step
from nvfp4_jax.training.bench_step import device_peak, planned_bytes
from nvfp4_jax.training.lone_step import LoneStep

Options = dict[str, bool | int | str]


@dataclass(frozen=True)
class Task:
    """A program, and where it and its figures go.

    Attributes:
      kind: the whole step, or the loss of the first one alone.
      step: which.
      options: of the compiler; None: those of training.
      rounds: steps timed, after two that are not.
      file: without suffix; what is written is beside it.
    """

    kind: Literal["step", "loss"]
    step: LoneStep
    options: Options | None
    rounds: int
    file: Path

    @classmethod
    def read(cls, path: Path) -> Task:
        """From the JSON that `write` wrote."""
        told = json.loads(path.read_text())
        return cls(**told | {"step": LoneStep(**told["step"]), "file": path.with_suffix("")})

    def write(self) -> Path:
        """To JSON; gives back the file."""
        path = self.file.with_name(f"{self.file.name}.json")
        told = {"kind": self.kind, "options": self.options, "rounds": self.rounds}
        path.write_text(json.dumps(told | {"step": vars(self.step)}))
        return path

    def beside(self, suffix: str) -> Path:
        """A file of this task."""
        return self.file.with_name(f"{self.file.name}.{suffix}")


def devices() -> dict[str, Any]:
    """How many there are here, and of what kind."""
    first = jax.devices()[0]
    return {"count": jax.device_count(), "kind": first.device_kind, "platform": first.platform}


def compile_(task: Task) -> dict[str, Any]:
    """Compile and keep the program and the one that draws the state; what the compiler says."""
    start = time.perf_counter()
    if task.kind == "step":
        compiled = lone_step.compile_step(task.step, task.options)
    else:
        compiled = lone_step.compile_loss(task.step)
    taken = time.perf_counter() - start
    first_state = lone_step.compile_first_state(task.step)
    task.beside("pickle").write_bytes(pickle.dumps([keep(compiled), keep(first_state)]))
    task.beside("hlo.gz").write_bytes(gzip.compress((compiled.as_text() or "").encode(), 3))
    return {"compile_seconds": taken, "planned_bytes": planned_bytes(compiled)}


def keep(compiled: jax.stages.Compiled) -> tuple[bytes, Any, Any]:
    """The program as bytes, and the trees around it."""
    # closures that the compiler called, such as those that cut kernels over a mesh; no longer
    compiled._executable._unloaded_executable.keepalive = None  # type: ignore[attr-defined]
    return serialize_executable.serialize(compiled)


def time_(task: Task) -> dict[str, Any]:
    """The first step's loss, the devices' peak after it, and the seconds of those that follow."""
    start = time.perf_counter()
    run, first_state = load(task)
    state = first_state()
    batch, key = lone_step.random_batch(task.step), lone_step.run_key(task.step)
    if task.kind == "loss":
        return {"loss": float(run(state.parameters, batch, key))}
    state, measured = jax.block_until_ready(run(state, batch, key))
    figures = {
        "loss": float(measured.loss),
        "grad_norm": float(measured.grad_norm),
        "peak_bytes": device_peak(),
        "loading_seconds": time.perf_counter() - start,
    }
    state, _ = jax.block_until_ready(run(state, batch, key))
    seconds = []
    for _ in range(task.rounds):
        start = time.perf_counter()
        state, measured = jax.block_until_ready(run(state, batch, key))
        seconds.append(time.perf_counter() - start)
    return figures | {"seconds": seconds, "last_loss": float(measured.loss)}


def load(task: Task) -> list[jax.stages.Compiled]:
    """The programs that `compile_` kept, on the devices of the task's mesh."""
    if jax.default_backend() == "gpu":
        # says where kernels compiled by Mosaic find the functions that launch them
        importlib.import_module("jax.experimental.mosaic.gpu")
    here = list(task.step.check().devices.flat)
    pair = pickle.loads(task.beside("pickle").read_bytes())
    return [serialize_executable.deserialize_and_load(*one, execution_devices=here) for one in pair]


def main(what: str, *arguments: str) -> None:
    """Do it, and write the figures beside the task; of `devices` to standard output."""
    if what == "devices":
        print(json.dumps(devices()))
        return
    task = Task.read(Path(arguments[0]))
    figures = compile_(task) if what == "compile" else time_(task)
    unfinished = task.beside(f"{what}.part")
    unfinished.write_text(json.dumps(figures))
    os.replace(unfinished, task.beside(f"{what}.figures"))


if __name__ == "__main__":
    main(*sys.argv[1:])

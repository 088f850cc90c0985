"""Does a step on N GPUs of one host take as long as on one, and does it compute the same?

Claim: with as many rows a GPU, `data=N` and `fsdp=N` keep at least 90% of one GPU's speed; the
NVFP4 step takes at most 1.2 times the BF16 step's time; the first step's loss is that of one GPU on
the same batch to 1e-5. `tensor=N` does one GPU's batch, and is told, not judged.
Command: python -m experiments.scaling [--model 1b --rows 8 --length 4096 --meshes data fsdp]
  (8 rows of `1b` take 87 GB of a GPU; on H100s --rows 4)
Cost: of two H200 six to eight minutes, half of it compilation, in parallel on 32 cores.
Method: each program is compiled by a process of its own, several at a time, and kept; then each is
timed by a process that has the GPUs to itself and takes their memory as JAX does by default. Every
step is waited for, as training does; medians. The loss on the batch of all GPUs is computed by one,
forward only. Simulated devices do for a trial:
JAX_PLATFORMS=cpu XLA_FLAGS=--xla_force_host_platform_device_count=8 and a small model.
Found: see BENCHMARKS.md.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro
from rich import box
from rich.console import Console
from rich.table import Table

from experiments.scaling_worker import Task
from nvfp4_jax.training.lone_step import LoneStep

CHECKOUT = Path(__file__).resolve().parents[1]
BASELINE = "bf16"
NO_OPTIONS = "xla"  # what XLA does by itself
TRIED: dict[str, dict[str, bool | int | str]] = {
    NO_OPTIONS: {},
    "lhs": {"xla_gpu_enable_latency_hiding_scheduler": True},
    "lhs-combine": {
        "xla_gpu_enable_latency_hiding_scheduler": True,
        "xla_gpu_all_gather_combine_threshold_bytes": 128 << 20,
        "xla_gpu_reduce_scatter_combine_threshold_bytes": 128 << 20,
        "xla_gpu_all_reduce_combine_threshold_bytes": 256 << 20,
    },
    "lhs-pipelined": {
        "xla_gpu_enable_latency_hiding_scheduler": True,
        "xla_gpu_pipeline_all_gather": 1,
        "xla_gpu_pipeline_reduce_scatter": 1,
        "xla_gpu_pipeline_all_reduce": 1,
    },
    "O1": {"optimization_level": "O1"},
}
"""Options of the compiler to compare; `nvfp4_jax/training/overlap.py` has those chosen."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to measure.

    Attributes:
      model: a preset or a JSON file.
      recipe: the recipe beside bf16.
      rows: of each GPU.
      length: tokens a row.
      gpus: how many; all that are here if left out.
      meshes: axes of the mesh to try, each with all GPUs.
      remat, scan: as in training.
      rounds: steps timed.
      tried: compiler options to compare on fsdp, in bf16: xla, lhs, lhs-combine, ...
      jobs: compilations at a time; a quarter of the cores if left out.
      limit: seconds after which a process is given up.
      folder: for programs, their text and all figures.
    """

    model: str = "1b"
    recipe: str = "nvfp4"
    rows: int = 8
    length: int = 4096
    gpus: int | None = None
    meshes: tuple[Literal["data", "fsdp", "tensor"], ...] = ("data", "fsdp", "tensor")
    remat: Literal["none", "block", "linear_inputs"] = "none"
    scan: Literal["auto", "on", "off"] = "auto"
    rounds: int = 15
    tried: tuple[str, ...] = ()
    jobs: int | None = None
    limit: float = 1800.0
    folder: Path = Path("runs/scaling")


def tasks(options: Options, gpus: int) -> dict[str, Task]:
    """Every program by name, the slowest to compile first."""

    def task(name: str, recipe: str, axis: str | None, rows: int, **more: Any) -> tuple[str, Task]:
        mesh = None if axis is None else f"{axis}={gpus}"
        step = LoneStep(
            model=options.model,
            recipe=recipe,
            batch=rows,
            length=options.length,
            remat=options.remat,
            scan=options.scan,
            mesh=mesh,
        )
        choice = {"kind": "step", "options": None, "rounds": options.rounds} | more
        return name, Task(step=step, file=options.folder / name.replace("=", ""), **choice)

    found = []
    for recipe in (options.recipe, BASELINE):
        for axis in options.meshes:
            rows = options.rows * (1 if axis == "tensor" else gpus)
            found.append(task(f"{recipe}-{axis}={gpus}", recipe, axis, rows))
        found.append(task(f"{recipe}-one", recipe, None, options.rows))
        found.append(task(f"{recipe}-loss", recipe, None, options.rows * gpus, kind="loss"))
    for tried in options.tried:
        more = {"options": TRIED[tried]}
        found.append(task(f"{tried}-fsdp={gpus}", BASELINE, "fsdp", options.rows * gpus, **more))
    return dict(found)


def compile_all(tasks: dict[str, Task], jobs: int, limit: float) -> None:
    """Compile side by side. The GPUs are shared meanwhile, so no process may take them whole."""
    shared = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(lambda name: work("compile", name, tasks[name], shared, limit), tasks))


def work(what: str, name: str, task: Task, environment: Any, limit: float) -> None:
    """Run a process on a task; its output goes beside the task, and a failure is told."""
    start, log = time.perf_counter(), task.beside(f"{what}.log")
    line = [sys.executable, "-m", "experiments.scaling_worker", what, str(task.write().resolve())]
    with log.open("w") as output:
        try:
            subprocess.run(
                line, cwd=CHECKOUT, env=environment, stdout=output, stderr=output, timeout=limit
            ).check_returncode()
            end = "done"
        except subprocess.TimeoutExpired:
            end = f"given up, see {log}"
        except subprocess.CalledProcessError:
            end = f"failed, see {log}"
    print(f"{what} {name}: {end}, {time.perf_counter() - start:.0f} s", flush=True)


def figures(task: Task) -> dict[str, Any]:
    """What the processes found, both in one; empty where they failed."""
    files = [task.beside(f"{what}.figures") for what in ("compile", "time")]
    found = [json.loads(file.read_text()) for file in files if file.exists()]
    return {name: value for part in found for name, value in part.items()}


def rows(options: Options, gpus: int, found: dict[str, dict[str, Any]]) -> Iterable[dict[str, Any]]:
    """A row of the table for each program that was timed, ratios included."""
    for name, told in found.items():
        if "seconds" not in told:
            continue
        recipe, _, mesh = name.partition("-")
        weak = not mesh.startswith(("one", "tensor"))
        lone = found.get(f"{recipe}-one", {})
        wanted = found.get(f"{recipe}-loss", {}).get("loss") if weak else lone.get("loss")
        seconds, one, bf16 = (
            statistics.median(one["seconds"]) if one.get("seconds") else None
            for one in (told, lone, found.get(f"{BASELINE}-{mesh}", {}))
        )
        assert seconds is not None
        yield {
            "program": name,
            "rows": options.rows * (gpus if weak else 1),
            "milliseconds": 1e3 * seconds,
            "efficiency": one / seconds / (1 if weak or mesh == "one" else gpus) if one else None,
            "ratio_to_bf16": seconds / bf16 if bf16 else None,
            "loss": told["loss"],
            "loss_gap": abs(told["loss"] / wanted - 1) if wanted else None,
            "peak_bytes": told["peak_bytes"],
            "planned_bytes": told.get("planned_bytes"),
            "compile_seconds": told.get("compile_seconds"),
        }


COLUMNS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "program": ("program", str),
    "rows": ("rows", str),
    "milliseconds": ("ms", "{:,.1f}".format),
    "efficiency": ("of one GPU's speed", "{:.1%}".format),
    "ratio_to_bf16": ("to bf16", "{:.3f}".format),
    "loss": ("first loss", "{:.6f}".format),
    "loss_gap": ("gap to one GPU's", "{:.1e}".format),
    "peak_bytes": ("peak, bytes", "{:,d}".format),
    "planned_bytes": ("planned", "{:,d}".format),
    "compile_seconds": ("compiled in, s", "{:.0f}".format),
}


def show(rows: list[dict[str, Any]], title: str) -> None:
    """The table."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for heading, _ in COLUMNS.values():
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        cells = ((row[name], form) for name, (_, form) in COLUMNS.items())
        table.add_row(*("-" if value is None else form(value) for value, form in cells))
    Console(width=170).print(table)


def main(options: Options) -> None:
    """Compile, time, tell."""
    line = [sys.executable, "-m", "experiments.scaling_worker", "devices"]
    here = json.loads(subprocess.check_output(line, cwd=CHECKOUT, text=True).splitlines()[-1])
    gpus = options.gpus or here["count"]
    if not 1 < gpus <= here["count"]:
        raise SystemExit(f"{gpus} devices asked for, {here['count']} here: give 2 or more")
    options.folder.mkdir(parents=True, exist_ok=True)
    programs = tasks(options, gpus)
    compile_all(programs, options.jobs or max(1, (os.cpu_count() or 4) // 4), options.limit)
    for name, task in programs.items():
        if task.beside("compile.figures").exists():
            work("time", name, task, dict(os.environ), options.limit)
    found = {name: figures(task) for name, task in programs.items()}
    table = list(rows(options, gpus, found))
    flags = {n: v for n, v in os.environ.items() if n.startswith("NCCL_") or n == "XLA_FLAGS"}
    told = {"devices": here, "gpus": gpus, "environment": flags, "table": table, "programs": found}
    (options.folder / "scaling.json").write_text(json.dumps(told, indent=1))
    show(table, f"Steps of {options.model} on {gpus} x {here['kind']}")
    failed = [name for name, told in found.items() if "loss" not in told]
    if failed:
        raise SystemExit(f"without figures: {', '.join(failed)}; see the logs in {options.folder}")


if __name__ == "__main__":
    main(tyro.cli(Options))

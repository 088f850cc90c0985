"""What a run leaves in its folder for people and programs to read.

recipe.toml               the recipe's exact text
config.json               model, training choices, corpus, versions
corpus.json               path -> digest of every text file
explain.txt               the precision of every layer
compiled.txt, .json       what the compiled step really does, layer by layer; where a schedule
                          changes it, compiled-from-STEP.txt and .json
metrics.jsonl             a line a step; deterministic
evaluation.jsonl          a line an evaluation; deterministic
timings.jsonl             seconds and tokens a second, a line a step
loss.png                  the course of the loss
tensorboard/              the logs for TensorBoard, with --tensorboard
checkpoints/              to continue from
checkpoints-unreadable/   those found damaged, out of the way
parameters.safetensors    the final FP32 parameters by path
compilation-cache/        compiled programs, so that continuing starts at once
.lock                     while a run is in it (`occupied`)
"""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils
from safetensors.numpy import load_file, save_file

from nvfp4_jax.training.distributed import is_first
from nvfp4_jax.training.errors import UsageError
from nvfp4_jax.training.files import replacing, write_atomically, write_json
from nvfp4_jax.training.occupied import LOCK
from nvfp4_jax.training.plot import plot_run, read_curve
from nvfp4_jax.training.prepare import Run
from nvfp4_jax.training.state import TrainState

SHARED_WITHIN_SECONDS = 30  # network file systems may be late to show a new file
PARAMETERS, COMPILED = "parameters.safetensors", "compilation-cache"
METRICS, EVALUATION, TIMINGS = "metrics.jsonl", "evaluation.jsonl", "timings.jsonl"


def write_description(run: Run) -> None:
    """Write what the run is into its folder."""
    workdir = run.config.workdir
    about = run.describe()
    text = about["recipe"].pop("text")
    table = run.recipe.explain(run.model, num_blocks=run.program.config.num_blocks)
    write_atomically(workdir / "recipe.toml", text)
    write_json(workdir / "config.json", about)
    write_json(workdir / "corpus.json", run.corpus.digests)
    write_atomically(workdir / "explain.txt", f"{table}\n")


def find_description(run: Run) -> None:
    """Raise a `UsageError` if this process does not see what the first one wrote."""
    path, about = run.config.workdir / "config.json", run.describe()
    del about["recipe"]["text"]
    deadline = time.monotonic() + SHARED_WITHIN_SECONDS
    while not path.exists() or json.loads(path.read_text()) != json.loads(json.dumps(about)):
        if time.monotonic() > deadline:
            raise UsageError(
                f"--workdir {run.config.workdir} is not the same folder on every process: this one "
                f"does not see the {path.name} of process 0; give a folder on a shared file system"
            )
        time.sleep(0.1)


def make_folder(workdir: Path) -> None:
    """Make the folder of a run, or raise a `UsageError` that says why it cannot be made."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--workdir {workdir}: cannot make the folder: {error.strerror}") from None


def remove_if_not_begun(workdir: Path) -> None:
    """Remove the folder of a run that was refused: one with nothing in it but compiled programs."""
    if workdir.is_dir() and {path.name for path in workdir.iterdir()} <= {COMPILED, LOCK}:
        shutil.rmtree(workdir)


def write_plot(run: Run) -> Path:
    """Draw the loss so far."""
    path = run.config.workdir / "loss.png"
    label = f"{Path(run.config.model).stem}, {run.recipe.name}"
    switches = [phase.start for phase in run.phases if phase.start]
    plot_run(path, read_curve(run.config.workdir, label), label, switches)
    return path


def write_parameters(run: Run, state: TrainState) -> None:
    """Write the FP32 parameters by path: equal runs write equal files.

    Every process takes part, since each has a share of them; the first one writes, and holds them
    all in its host's memory for that.
    """
    whole: dict[str, np.ndarray] = {}
    for name, array in state.parameters.items():
        gathered = _gathered(array)
        if is_first():
            whole[name] = gathered
    if is_first():
        with replacing(run.config.workdir / PARAMETERS) as temporary:
            save_file(whole, temporary)
            temporary.chmod(0o644)  # safetensors makes files that only their owner reads


def _gathered(array: jax.Array) -> np.ndarray:
    if array.is_fully_addressable:
        return np.asarray(array)
    return multihost_utils.process_allgather(array, tiled=True)


def read_parameters(workdir: str | Path) -> dict[str, np.ndarray]:
    """The final parameters of a finished run, path -> FP32 array."""
    return load_file(Path(workdir) / PARAMETERS)

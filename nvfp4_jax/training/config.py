"""What a person can choose about a run, checked before anything is touched."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from nvfp4_jax.training.errors import UsageError

# The choices that decide a number of the run; the others may differ when it is continued.
DECISIVE = (
    "steps",
    "seed",
    "batch",
    "length",
    "microbatches",
    "sum_parts",
    "feature_parts",
    "learning_rate",
    "warmup",
    "decay_fraction",
)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Train a model on text, with the numerics that a recipe says.

    Attributes:
      workdir: Folder of the run; the same command continues what it holds.
      model: A preset (tiny, 150m, ...) or a JSON file with the fields of a HybridConfig.
      recipe: A recipe's name (nvfp4, bf16, ...) or the path of a TOML file.
      steps: Length of the run.
      data: Folder of UTF-8 text files, a byte a token, or one that nvfp4 data prepare made;
        Python's standard library if left out.
      seed: Decides the initial weights, the order of the data and the stochastic rounding.
      batch: Rows a step.
      length: Tokens a row.
      microbatches: Parts a batch is computed in, their gradients added in FP32.
      learning_rate: Its stable value, between warm-up and decay.
      warmup: Steps of linear warm-up; a tenth of the run, at most 100, if left out.
      decay_fraction: Share of the run, at its end, in which the learning rate decays.
      sum_parts: Add up gradients over the batch in this many parts and in one order (a power of
        two), so that every mesh of data x fsdp that divides it trains to the same bits.
      feature_parts: With --sum-parts: compute products in this many parts of the features inside a
        layer too (a power of two), so that meshes with as much tensor train to the same bits.
      save_every: Steps between checkpoints; there is always one at the end.
      keep: Newest checkpoints kept.
      keep_every: Checkpoints kept besides, for good: every so many steps (1000) or hours (6h).
      eval_every: Steps between evaluations on held-out files; there is always one at the end.
      eval_batches: Batches of an evaluation.
      max_skipped: Steps in a row that may be skipped, for a loss or gradient that is not finite,
        before the run stops.
      remat: What to keep for the backward pass: everything, the inputs of linear layers (packed,
        if the recipe says so), or only what passes between blocks.
      scan: Whether to trace repeated blocks once: faster to compile, slower to run, since what
        each repeat keeps is copied (27 ms of a step's 121 for 150m on an H100). auto: from 24
        blocks on, in runs of less than 1000 steps or on several devices.
      mesh: Devices and what is cut over them, data=2,fsdp=4,sequence=1,tensor=2; axes that are
        left out are 1, and all of it left out is one device.
      distributed: How several processes meet, each on its own devices: slurm (under srun), mpi
        (under mpirun), or HOST:PORT, where process 0 listens.
      processes: With --distributed HOST:PORT: how many there are.
      process: With --distributed HOST:PORT: the number of this one, from 0.
      tensorboard: Write the logs for TensorBoard too, to WORKDIR/tensorboard.
      gather: How quantized weights that are stored in parts (fsdp) travel: as 4-bit codes, unpacked
        by every device for each use, or as bf16. auto: as codes between hosts.
      compilation_cache: Folder for compiled programs; WORKDIR/compilation-cache if left out.
      force_recipe: Continue a run although its recipe has changed.
      allow_fallback: Train although the compiled step does not do what the recipe says; without it
        such a run stops before it begins.
    """

    workdir: Path
    model: str = "tiny"
    recipe: str = "nvfp4"
    steps: int = 200
    data: Path | None = None
    seed: int = 0
    batch: int = 8
    length: int = 256
    microbatches: int = 1
    sum_parts: int | None = None
    feature_parts: int | None = None
    learning_rate: float = 3e-3
    warmup: int | None = None
    decay_fraction: float = 0.2
    save_every: int = 50
    keep: int = 2
    keep_every: str | None = None
    eval_every: int = 50
    eval_batches: int = 16
    max_skipped: int = 10
    remat: Literal["none", "linear_inputs", "block"] = "none"
    scan: Literal["auto", "on", "off"] = "auto"
    mesh: str | None = None
    gather: Literal["auto", "packed", "bf16"] = "auto"
    distributed: str | None = None
    processes: int | None = None
    process: int | None = None
    tensorboard: bool = False
    compilation_cache: Path | None = None
    force_recipe: bool = False
    allow_fallback: bool = False

    @property
    def warmup_steps(self) -> int:
        """`warmup`, or what stands for it when it is left out."""
        return min(self.steps // 10, 100) if self.warmup is None else self.warmup

    @property
    def tokens_per_step(self) -> int:
        """Tokens of a batch."""
        return self.batch * self.length

    def decisive(self) -> dict[str, int | float]:
        """The choices that decide a number of the run."""
        choices = dataclasses.asdict(self) | {"warmup": self.warmup_steps}
        return {name: choices[name] for name in DECISIVE}

    def check(self) -> None:
        """Raise a `UsageError` for the first choice that cannot be honoured."""
        for name in ("steps", "batch", "length", "microbatches", "save_every", "keep"):
            at_least(self, name, 1)
        for name in ("eval_every", "eval_batches", "max_skipped"):
            at_least(self, name, 1)
        at_least(self, "warmup_steps", 0)
        if not 0 <= self.seed < 2**32:
            raise UsageError(f"--seed {self.seed}: give a number from 0 to 2^32 - 1")
        if not 0 < self.learning_rate < float("inf"):
            raise UsageError(f"--learning-rate {self.learning_rate}: give a positive number")
        if not 0 <= self.decay_fraction <= 1:
            raise UsageError(f"--decay-fraction {self.decay_fraction}: give a share from 0 to 1")
        check_microbatches(self)
        _check_keep_every(self)
        _check_schedule(self)
        _check_workdir(self.workdir)


def check_microbatches(shape: Any) -> None:
    """Raise a `UsageError` for `microbatches` that do not divide `batch`."""
    if shape.batch % shape.microbatches:
        raise UsageError(
            f"--microbatches {shape.microbatches} does not divide --batch {shape.batch}"
        )


def at_least(config: Any, name: str, least: int) -> None:
    """Raise a `UsageError` for a number that is too small; `config` has it by its name."""
    value = getattr(config, name)
    if value < least:
        flag = name.removesuffix("_steps").replace("_", "-")
        raise UsageError(f"--{flag} {value}: give a whole number of at least {least}")


def keep_every_interval(text: str) -> tuple[float, Literal["steps", "hours"]]:
    """What `--keep-every` says: how many, and of what. Raises a `UsageError` for anything else."""
    unit = "hours" if text.endswith("h") else "steps"
    try:
        count = float(text[:-1]) if unit == "hours" else int(text)
    except ValueError:
        count = 0
    if not 0 < count < float("inf"):
        raise UsageError(f"--keep-every {text}: give a number of steps (1000) or of hours (6h)")
    return count, unit


def _check_keep_every(config: TrainConfig) -> None:
    if config.keep_every is None:
        return
    count, unit = keep_every_interval(config.keep_every)
    if unit == "steps" and count % config.save_every:
        raise UsageError(
            f"--keep-every {config.keep_every} is no multiple of --save-every {config.save_every}, "
            "so that no checkpoint would be due for it; give a multiple, or hours (6h)"
        )


def _check_schedule(config: TrainConfig) -> None:
    decay = round(config.decay_fraction * config.steps)
    if config.warmup_steps + decay > config.steps:
        raise UsageError(
            f"--warmup {config.warmup_steps} and --decay-fraction {config.decay_fraction} "
            f"({decay} steps) exceed --steps {config.steps}; lower one of them"
        )


def _check_workdir(workdir: Path) -> None:
    for folder in (workdir, *workdir.absolute().parents):
        if folder.exists() and not folder.is_dir():
            raise UsageError(f"--workdir {workdir}: {folder} is a file; give a folder")
        if folder.exists():
            if not os.access(folder, os.W_OK | os.X_OK):
                raise UsageError(
                    f"--workdir {workdir}: {folder} cannot be written to (read-only, or another's)"
                )
            return

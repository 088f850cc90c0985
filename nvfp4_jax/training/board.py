"""TensorBoard's files: the logs once more, as TensorBoard reads them (`--tensorboard`).

    WORKDIR/tensorboard/events.out.tfevents.*      tensorboard --logdir WORKDIR

A run that was killed has written steps that it will do again, and TensorBoard would show them
twice. So the file is begun anew at every start, from the lines of metrics.jsonl,
evaluation.jsonl and timings.jsonl that are kept: each step is in it once, with the numbers of the
log. Times on its axis are of training alone, without the pauses between starts.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from nvfp4_jax.training.errors import UsageError
from nvfp4_jax.training.metrics import read_lines
from nvfp4_jax.training.workdir import EVALUATION, METRICS, TIMINGS

TAGS = {  # file -> field -> what TensorBoard calls it
    METRICS: {
        "loss": "training/loss",
        "grad_norm": "training/gradient_norm",
        "learning_rate": "training/learning_rate",
    },
    TIMINGS: {"tokens_per_second": "speed/tokens_per_second"},
    EVALUATION: {"loss": "held_out/loss", "bits_per_byte": "held_out/bits_per_byte"},
}


def check_installed() -> None:
    """Raise a `UsageError` if the library that writes these files is not here."""
    if importlib.util.find_spec("tensorboardX") is None:
        raise UsageError(
            "--tensorboard needs tensorboardX: install nvfp4_jax[tensorboard], in a checkout -e "
            "'.[tensorboard]', or leave it out; metrics.jsonl is written all the same"
        )


class Board:
    """The event file of a run; use as a context manager.

    Args:
      workdir: of the run; its logs are open, and hold nothing past the step to go on from.
    """

    def __init__(self, workdir: Path) -> None:
        from tensorboardX import SummaryWriter

        folder = workdir / "tensorboard"
        for path in folder.glob("events.out.tfevents.*"):
            path.unlink()
        self._writer = SummaryWriter(str(folder), flush_secs=10)
        self._replay(workdir)

    def write(self, name: str, line: Mapping[str, Any], when: float | None = None) -> None:
        """Add what a line of the log `name` says; what was not finite is left out."""
        for field, tag in TAGS[name].items():
            if line[field] is not None:
                self._writer.add_scalar(tag, line[field], line["step"], walltime=when)

    def _replay(self, workdir: Path) -> None:
        timings = read_lines(workdir / TIMINGS)
        clock, when = time.time() - sum(line["seconds"] for line in timings), {}
        for line in timings:
            clock += line["seconds"]
            when[line["step"]] = clock
        for name in TAGS:
            for line in read_lines(workdir / name):
                self.write(name, line, when.get(line["step"], clock))

    def __enter__(self) -> Board:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._writer.close()

"""How a run ended, in one value and one line."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from pathlib import Path

from nvfp4_jax.training.bits import bits_per_byte, read_bytes_per_token
from nvfp4_jax.training.config import TrainConfig
from nvfp4_jax.training.metrics import read_lines
from nvfp4_jax.training.workdir import EVALUATION, METRICS


@dataclass(frozen=True)
class Summary:
    """How a run ended; `str()` is a line to read.

    Attributes:
      workdir: its folder.
      step: steps done.
      tokens: tokens trained on.
      loss: of the last training step, in nats a token; None if it was skipped or its line is lost.
      bits_per_byte: on the held-out files, of the last evaluation; None before the first.
      skipped: steps skipped in all.
      seconds: the time this call took.
      bytes_per_token: of the training text.
      stopped_by: the signal that ended it early, or None.
    """

    workdir: Path
    step: int
    tokens: int
    loss: float | None
    bits_per_byte: float | None
    skipped: int
    seconds: float
    bytes_per_token: float
    stopped_by: signal.Signals | None = None

    @property
    def interrupted(self) -> bool:
        """Whether it was ended by Ctrl-C."""
        return self.stopped_by == signal.SIGINT

    def __str__(self) -> str:
        if self.stopped_by:
            name = self.stopped_by.name
            return f"stopped by {name} and saved at step {self.step}; the same command continues"
        bits = "-" if self.bits_per_byte is None else f"{self.bits_per_byte:.4f}"
        train = (
            "-" if self.loss is None else f"{bits_per_byte(self.loss, self.bytes_per_token):.4f}"
        )
        skipped = f", {self.skipped} steps skipped" if self.skipped else ""
        return (
            f"done: {self.step} steps, {self.tokens:,} tokens, {self.seconds:.0f} s; "
            f"held out {bits} bits/byte, training {train}{skipped}; see {self.workdir}/loss.png"
        )


def summarize(
    config: TrainConfig,
    step: int,
    skipped: int,
    seconds: float,
    stopped_by: signal.Signals | None,
) -> Summary:
    """The summary of a run after `step` steps; None for what logs that were lost do not tell."""
    workdir = config.workdir
    losses = {line["step"]: line["loss"] for line in read_lines(workdir / METRICS)[-1:]}
    held_out = read_lines(workdir / EVALUATION)
    bits = held_out[-1]["bits_per_byte"] if held_out else None
    return Summary(
        workdir,
        step,
        step * config.tokens_per_step,
        losses.get(step),
        bits,
        skipped,
        seconds,
        read_bytes_per_token(workdir),
        stopped_by,
    )

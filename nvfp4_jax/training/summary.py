"""How a run ended, in one value and one line."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from pathlib import Path

from nvfp4_jax.training.bits import bits_per_byte, read_bytes_per_token
from nvfp4_jax.training.metrics import read_lines
from nvfp4_jax.training.workdir import EVALUATION, METRICS


@dataclass(frozen=True)
class Summary:
    """How a run ended; `str()` is a line to read.

    Attributes:
      workdir: its folder.
      step: steps done.
      tokens: tokens trained on.
      loss: of the last training step, in nats a token; None if that step was skipped.
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
    workdir: Path, skipped: int, seconds: float, stopped_by: signal.Signals | None
) -> Summary:
    """The summary of the run that a folder's logs tell of."""
    steps = read_lines(workdir / METRICS)
    held_out = read_lines(workdir / EVALUATION)
    last = steps[-1] if steps else {"step": 0, "tokens": 0, "loss": None}
    bits = held_out[-1]["bits_per_byte"] if held_out else None
    return Summary(
        workdir,
        last["step"],
        last["tokens"],
        last["loss"],
        bits,
        skipped,
        seconds,
        read_bytes_per_token(workdir),
        stopped_by,
    )

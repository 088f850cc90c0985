"""What a run tells while it runs: logs, TensorBoard, the picture of the loss, the progress.

Of several processes the first alone has a journal; the others take the same steps in silence.
"""

from __future__ import annotations

import contextlib
import time

from rich.console import Console

from nvfp4_jax.training.bits import bits_per_byte
from nvfp4_jax.training.board import Board
from nvfp4_jax.training.data import bytes_per_target
from nvfp4_jax.training.metrics import Lines
from nvfp4_jax.training.prepare import Run
from nvfp4_jax.training.progress import Reporter
from nvfp4_jax.training.step import Measured
from nvfp4_jax.training.workdir import EVALUATION, METRICS, TIMINGS, write_plot

PLOT_EVERY_SECONDS = 60


class Journal:
    """The open logs of a run and what is shown of it.

    Args:
      run: the run.
      done: steps done; what the logs hold of later ones is cut off.
      console: where progress is shown.
      stack: closes what is opened here.
    """

    def __init__(self, run: Run, done: int, console: Console, stack: contextlib.ExitStack) -> None:
        config = run.config
        self._run, self._plotted = run, time.monotonic()
        self._bytes_per_target = bytes_per_target(
            run.corpus.held_out, batch=config.batch, length=config.length, count=config.eval_batches
        )
        self._compiled = {done + 1, *(phase.start + 1 for phase in run.phases)}
        self._lines = {
            name: stack.enter_context(Lines(config.workdir / name, through=done))
            for name in (METRICS, EVALUATION, TIMINGS)
        }
        self._board = stack.enter_context(Board(config.workdir)) if config.tensorboard else None
        self._report = stack.enter_context(
            Reporter(
                console,
                run.recipe.name,
                config.steps,
                done,
                config.tokens_per_step,
                run.corpus.bytes_per_token,
            )
        )

    def step(self, done: int, measured: Measured, seconds: float) -> None:
        """Write and show what step `done` (from 1) measured and how long it took."""
        tokens = self._run.config.tokens_per_step
        loss, norm = float(measured.loss), float(measured.grad_norm)
        skipped = {"skipped": True} if measured.skipped_in_a_row else {}
        self._write(
            METRICS,
            step=done,
            loss=loss,
            grad_norm=norm,
            learning_rate=float(measured.learning_rate),
            tokens=done * tokens,
            **skipped,
        )
        self._write(TIMINGS, step=done, seconds=seconds, tokens_per_second=tokens / seconds)
        self._report.step(done, loss, seconds, compiled=done in self._compiled)
        if skipped:
            self._report.say(f"step {done} skipped: loss {loss}, gradient norm {norm}")

    def evaluation(self, done: int, loss: float, targets: int) -> None:
        """Write and show the held-out loss, in nats a target, after step `done`."""
        bits = bits_per_byte(loss, self._bytes_per_target)
        self._write(EVALUATION, step=done, loss=loss, bits_per_byte=bits, targets=targets)
        self._report.say(f"step {done}: held out {bits:.4f} bits/byte")

    def to_disk(self) -> None:
        """See the logs that a run continues onto the disk; called before a checkpoint is begun."""
        for name in (METRICS, EVALUATION):
            self._lines[name].to_disk()

    def draw(self) -> None:
        """Draw the loss so far, if that was not done within the last minute."""
        if time.monotonic() - self._plotted > PLOT_EVERY_SECONDS:
            write_plot(self._run)
            self._plotted = time.monotonic()

    def _write(self, name: str, **fields: float | int | bool | str | None) -> None:
        line = self._lines[name].write(**fields)
        if self._board is not None:
            self._board.write(name, line)

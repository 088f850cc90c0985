"""What a person sees while it runs: a bar in a terminal, plain lines anywhere else."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from nvfp4_jax.training.bits import bits_per_byte

LINES_A_RUN = 20  # at most, besides the first, where there is no terminal
SMOOTHING = 0.9


class Reporter:
    """Shows the progress of one run; use as a context manager.

    Args:
      console: where to print.
      name: of the run.
      steps: length of the run.
      done: steps done before.
      tokens: tokens a step.
      bytes_per_token: of the text.
    """

    def __init__(
        self,
        console: Console,
        name: str,
        steps: int,
        done: int,
        tokens: int,
        bytes_per_token: float = 1.0,
    ) -> None:
        self._console, self._steps, self._tokens = console, steps, tokens
        self._bytes_per_token = bytes_per_token
        self._first = done + 1
        self._seconds: float | None = None
        self._shown = time.monotonic()
        columns: list[ProgressColumn] = [
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}  {task.fields[bits]} bits/byte"),
            TextColumn("{task.fields[speed]} tokens/s"),
            _TimeLeft(),
        ]
        self._bar = Progress(*columns, console=console, disable=not console.is_terminal)
        self._task = self._bar.add_task(
            name, total=steps, completed=done, loss="-", bits="-", speed="-", left=None
        )

    def step(self, step: int, loss: float, seconds: float, *, compiled: bool) -> None:
        """Step `step` (from 1) is done and took `seconds`, which do not count if it `compiled`."""
        if not compiled:
            before = self._seconds or seconds
            self._seconds = SMOOTHING * before + (1 - SMOOTHING) * seconds
        speed = f"{self._tokens / self._seconds:,.0f}" if self._seconds else "-"
        bits = f"{bits_per_byte(loss, self._bytes_per_token):.3f}"
        left = self._seconds * (self._steps - step) if self._seconds else None
        self._bar.update(
            self._task, completed=step, loss=f"{loss:.3f}", bits=bits, speed=speed, left=left
        )
        due = step in (self._first, self._steps) or step % -(-self._steps // LINES_A_RUN) == 0
        if not self._console.is_terminal and due:
            tail = f", {_clock(left)} left" if left else ""
            self._print(
                f"step {step}/{self._steps}: loss {loss:.3f}, {bits} bits/byte, "
                f"{speed} tokens/s{tail}"
            )

    def say(self, message: str) -> None:
        """Print a line above the bar."""
        self._print(message)

    def _print(self, message: str) -> None:
        self._bar.console.print(message, highlight=False, markup=False, soft_wrap=True)

    def __enter__(self) -> Reporter:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()


class _TimeLeft(TimeRemainingColumn):
    """Time left by the reporter's own measure, which leaves compilation out."""

    def render(self, task: Task) -> Text:
        left = task.fields["left"]
        return Text("-:--" if left is None else f"{_clock(left)} left", style="progress.remaining")


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"

"""What a person sees of the preparation: a bar for each part of it, or a line at its end."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

EVERY = 0.1  # seconds between two looks of the bar; documents may come by the million

Show = Callable[[int, str], None]


@contextlib.contextmanager
def part(console: Console, what: str, total: int | None) -> Iterator[Show]:
    """One part of the work, of `total` units or of unknown length.

    Gives a function to call with the units done so far and a few words about them.
    """
    began = shown = time.monotonic()
    last = ""
    bar = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[words]}"),
        TimeElapsedColumn(),
        console=console,
        disable=not console.is_terminal,
        transient=True,
    )
    with bar:
        task = bar.add_task(what, total=total, words="")

        def show(done: int, words: str) -> None:
            nonlocal last, shown
            last = words
            if time.monotonic() - shown > EVERY:
                shown = time.monotonic()
                bar.update(task, completed=done, words=words)

        yield show
    say(console, f"{what}: {last + ', ' if last else ''}{time.monotonic() - began:.0f} s")


def say(console: Console, line: str) -> None:
    """A line of plain text."""
    console.print(line, highlight=False, markup=False, soft_wrap=True)

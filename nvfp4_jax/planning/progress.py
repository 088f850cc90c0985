"""What a person sees while a program compiles, which tells nothing of how far it is."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

SECONDS = 30.0  # between lines where there is no terminal
Say = Callable[[str], None]


@contextlib.contextmanager
def progress(console: Console, seconds: float = SECONDS) -> Iterator[Say]:
    """While open: what is being done; with a clock in a terminal, in lines anywhere else.

    Args:
      console: where to print.
      seconds: between two lines on the same thing, where there is no terminal.
    """
    with (_clock if console.is_terminal else _lines)(console, seconds) as say:
        yield say


@contextlib.contextmanager
def _clock(console: Console, _: float) -> Iterator[Say]:
    columns = (
        SpinnerColumn(finished_text=" "),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as bar:

        def finish() -> None:
            for task in bar.task_ids:
                bar.update(task, total=1, completed=1)

        def say(message: str) -> None:
            finish()
            bar.add_task(message, total=None)

        yield say
        finish()


@contextlib.contextmanager
def _lines(console: Console, seconds: float) -> Iterator[Say]:
    """A thread repeats what was said last, while the compiler has all the others."""
    ended = threading.Event()
    last = ("", time.monotonic())

    def say(message: str) -> None:
        nonlocal last
        last = (message, time.monotonic())
        console.print(message, highlight=False, markup=False)

    def repeat() -> None:
        while not ended.wait(seconds):
            message, since = last
            if message and (gone := time.monotonic() - since) >= seconds:
                line = f"{message}, for {gone:.0f} s"
                console.print(line, highlight=False, markup=False)

    thread = threading.Thread(target=repeat, name="progress", daemon=True)
    thread.start()
    try:
        yield say
    finally:
        ended.set()
        thread.join()

"""What libraries write to standard error besides raising it, when a save fails.

Orbax logs each of its threads' tracebacks, and its unfinished tasks complain that their loop is
gone, fifty at a time. The error itself is raised and told once (`StorageError`); behind a page of
tracebacks nobody would see it. Only the command line asks for this: to a program that calls the
library, its loggers are its own.
"""

from __future__ import annotations

import logging
import sys

from absl import logging as absl_logging


def quieten_orbax() -> None:
    """Let Orbax's tracebacks of what it also raises go unseen, from now on."""
    absl_logging.get_absl_logger().addFilter(_is_not_orbax_failing)
    if sys.unraisablehook is sys.__unraisablehook__:  # nobody else's
        sys.unraisablehook = _show_unless_loop_is_closed


def _show_unless_loop_is_closed(unraisable: sys.UnraisableHookArgs) -> None:
    if "Event loop is closed" not in str(unraisable.exc_value):
        sys.__unraisablehook__(unraisable)


def _is_not_orbax_failing(record: logging.LogRecord) -> bool:
    return "orbax" not in record.pathname or record.levelno < logging.ERROR

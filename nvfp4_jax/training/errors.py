"""The ways in which a run can fail that are not faults of the code."""

from __future__ import annotations

import os
import re


class UsageError(ValueError):
    """A bad argument, folder, model or checkpoint; the message names the place and the remedy.

    The command line prints it as it is and exits with status 2. Anything else that escapes is a
    fault of ours and keeps its traceback.
    """


class Diverged(RuntimeError):
    """Too many steps in a row had a loss or gradient that was not finite.

    Status 3: whoever starts runs again by themselves need not start this one.
    """


class StorageError(RuntimeError):
    """A disk or folder failed the run: full, read-only, gone. What was whole before it still is."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, once what it fell into is saved, by all processes; what they do next is end."""


def outcome(error: BaseException) -> tuple[str, int] | None:
    """(message, exit status) of an error that a person can mend; None for a fault of ours."""
    from nvfp4_jax.recipe import RecipeError  # not above: it takes the command line a second

    if isinstance(error, UsageError | RecipeError):
        return str(error), 2
    if isinstance(error, Diverged):
        return str(error), 3
    if isinstance(error, StorageError):
        return str(error), 1
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", 130
    return None


def reason(error: BaseException) -> str:
    """What the operating system said, in its own words, if it is in an error; else the error's."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    number = re.search(r"os[ _]error(?:_code=')? ?(\d+)", str(error))  # tensorstore, safetensors
    return os.strerror(int(number[1])) if number else str(error).split("\n")[0]

"""The two ways in which a run can fail that are not faults of the code."""

from __future__ import annotations


class UsageError(ValueError):
    """A bad argument, folder, model or checkpoint; the message names the place and the remedy.

    The command line prints it as it is and exits with status 2. Anything else that escapes is a
    fault of ours and keeps its traceback.
    """


class Diverged(RuntimeError):
    """Too many steps in a row had a loss or gradient that was not finite."""

"""The one kind of error a person can cause: a request that cannot be honoured as it stands."""

from __future__ import annotations


class UsageError(ValueError):
    """A bad argument, folder, model or checkpoint; the message names the place and the remedy.

    The command line prints it as it is and exits with status 2. Anything else that escapes is a
    fault of ours and keeps its traceback.
    """

"""One run at a time in a workdir.

Two would write their lines into the same logs and remove each other's checkpoints while they are
being written. So the process that writes holds a lock (`flock`) on WORKDIR/.lock from before its
first change to after its last. The operating system lets go of it when the process ends, however
it ends; a file that a killed one leaves says nothing and is locked again.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from nvfp4_jax.training.errors import UsageError, reason

LOCK = ".lock"


@contextlib.contextmanager
def occupied(workdir: Path, say: Callable[[str], None]) -> Iterator[None]:
    """While open, no other run can be in the folder.

    Args:
      workdir: a folder that is there.
      say: told where there is no lock to be had, as on some network file systems or a disk without
        room for one more file: then it is for the person to see to it.

    Raises:
      UsageError: another run is in it; nothing was changed.
    """
    path = workdir / LOCK
    file = None
    try:
        file = _locked(path)
    except BlockingIOError:
        raise UsageError(
            f"--workdir {workdir}: another run uses it now; wait for its end or give another "
            f"folder (if it was lost with its host, remove {path})"
        ) from None
    except OSError as error:
        say(f"cannot lock {path} ({reason(error)}): see that no other run uses this folder")
    with file or contextlib.nullcontext():
        try:
            yield
        finally:
            if file:
                with contextlib.suppress(OSError):
                    path.unlink(missing_ok=True)


def _locked(path: Path) -> BinaryIO:
    """The file at `path`, locked; BlockingIOError if another has it."""
    while True:
        file = path.open("ab")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(path, file):
                return file
        except BaseException:
            file.close()
            raise
        file.close()


def _is_at(path: Path, file: BinaryIO) -> bool:
    """Whether `file` is still what is found at `path`: a run that ends removes its own."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False

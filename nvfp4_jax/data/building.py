"""A folder that is whole or not there.

It is built beside its place under another name and renamed when it is done, which is one act of
the file system. What ends the work early removes it; what kills the process leaves it, and the
next attempt, which cannot know whether that one is still at work, says so and stops.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from nvfp4_jax.training.errors import StorageError, UsageError, reason
from nvfp4_jax.training.manifest import MANIFEST


@contextlib.contextmanager
def building(out: Path) -> Iterator[Path]:
    """The folder to build in, which becomes `out` if all goes well.

    Raises:
      UsageError: `out` is there and not empty, someone else builds it, or it cannot be made.
      StorageError: the disk does not take what is written to it; nothing is left behind.
    """
    check_free(out)
    place = out.absolute().with_name(f".{out.absolute().name}.preparing")
    if place.exists():
        raise UsageError(
            f"--out {out}: {place} is there: another process prepares it now, or was killed; in "
            f"that case remove it (rm -r {place})"
        )
    try:
        place.mkdir(parents=True)
    except OSError as error:
        raise UsageError(f"--out {out}: cannot make the folder: {error.strerror}") from None
    try:
        yield place
        os.replace(place, out)
    except OSError as error:
        raise StorageError(
            f"--out {out}: cannot write: {reason(error)}; nothing was kept"
        ) from None
    finally:
        shutil.rmtree(place, ignore_errors=True)


def check_free(out: Path) -> None:
    """Raise a `UsageError` when there is something at `out`."""
    if (out / MANIFEST).exists():
        raise UsageError(
            f"--out {out}: a prepared corpus is there; remove it or give another --out"
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        what = "holds other files" if out.is_dir() else "is a file"
        raise UsageError(f"--out {out}: it {what}; give a folder that is new or empty")

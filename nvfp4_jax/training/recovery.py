"""Which checkpoint to continue from: the newest that is whole, the same on every process.

Process 0 looks, since it alone may move what is damaged; the others are told what it found. A
folder in which nothing is whole stops the run: to begin anew over the logs of a long run is not
for a program to decide.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from nvfp4_jax.training import checkpoint
from nvfp4_jax.training.checkpoint import Found
from nvfp4_jax.training.errors import StorageError, UsageError
from nvfp4_jax.training.integrity import find_damage

ASIDE = "checkpoints-unreadable"
NONE, REFUSED, FAILED = -1, -2, -3  # what process 0 tells in place of a step


def newest(folder: Path, say: Callable[[str], None]) -> Found | None:
    """The newest whole checkpoint, None if there never was one. Called by every process.

    Args:
      folder: where checkpoints are.
      say: told of each that is damaged and where it went.

    Raises:
      UsageError: there are checkpoints, and none is whole; or `folder` is no folder.
      StorageError: it cannot be read, or a damaged one cannot be moved.
    """
    step = _agreed(lambda: _newest_step(folder, say))
    return None if step is None else checkpoint.describe(folder / str(step))


def set_aside(path: Path) -> Path:
    """Move a damaged checkpoint to `checkpoints-unreadable`, out of everyone's way."""
    aside = path.parent.with_name(ASIDE) / path.name
    aside.parent.mkdir(exist_ok=True)
    shutil.rmtree(aside, ignore_errors=True)
    return path.rename(aside)


def _newest_step(folder: Path, say: Callable[[str], None]) -> int | None:
    if folder.exists() and not folder.is_dir():
        raise UsageError(
            f"{folder} is a file, and should be the folder of checkpoints: restore it, or start "
            "another --workdir"
        )
    try:
        return _first_whole(folder, say)
    except OSError as error:
        raise StorageError(f"{error.filename}: {error.strerror}; nothing was changed") from error


def _first_whole(folder: Path, say: Callable[[str], None]) -> int | None:
    for step in checkpoint.steps(folder):
        path = folder / str(step)
        damage = find_damage(path)
        if damage is None:
            return step
        say(f"checkpoint {step} is damaged: {damage}; it is now {set_aside(path)}")
    if aside := checkpoint.steps(folder.with_name(ASIDE)):
        raise UsageError(
            f"no checkpoint in {folder} is whole; what was there is in {folder.with_name(ASIDE)} "
            f"(steps {', '.join(map(str, sorted(aside)))}): put a whole copy back, start another "
            "--workdir, or remove that folder to begin anew in this one"
        )
    return None


def _agreed(find: Callable[[], int | None]) -> int | None:
    """Process 0's answer on every process; where it raises, all do."""
    if jax.process_count() == 1:
        return find()
    answer, refusal = NONE, None
    if jax.process_index() == 0:
        try:
            found = find()
            answer = NONE if found is None else found
        except (UsageError, StorageError) as error:
            answer, refusal = (REFUSED if isinstance(error, UsageError) else FAILED), error
    told = int(multihost_utils.broadcast_one_to_all(np.int32(answer)))
    if told == REFUSED:
        raise refusal or UsageError("the first process refused the checkpoints: see its message")
    if told == FAILED:
        raise refusal or StorageError("the first process cannot read the checkpoints: see there")
    return None if told == NONE else told

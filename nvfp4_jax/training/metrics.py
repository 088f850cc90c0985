"""Logs of one JSON object a line, which a run that was cut off continues to the byte.

A line is written whole as soon as its step is done. After a crash the file may be ahead of the
checkpoint, and its last line may be torn; continuing first cuts the file back to the restored
step, and the steps done again write the same lines again. For that the lines hold deterministic
fields only; what a clock says goes to a file of its own.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import math
import os
from pathlib import Path
from types import TracebackType
from typing import Any

from nvfp4_jax.training.errors import UsageError
from nvfp4_jax.training.files import storing


class Lines:
    """An open log; use as a context manager.

    Args:
      path: the file, created if missing.
      through: lines of later steps are cut off before anything is written.

    Raises:
      UsageError: a line that is whole is none of a log; nothing was cut off.
      StorageError: the file cannot be read or written.
    """

    def __init__(self, path: Path, through: int) -> None:
        self._path = path
        with storing(path):
            _cut(path, through)
            self._file = path.open("ab", buffering=0)

    def write(self, **fields: float | int | bool | str | None) -> dict[str, Any]:
        """Append one line, whole or not at all, and return it; what is not finite becomes null.

        Raises:
          StorageError: the disk is full, or fails otherwise.
        """
        line = {name: _plain(value) for name, value in fields.items()}
        with storing(self._path):
            _append(self._file, f"{json.dumps(line)}\n".encode())
        return line

    def to_disk(self) -> None:
        """Return when all lines would outlive a power failure, as a checkpoint after them does."""
        with storing(self._path):
            os.fsync(self._file)

    def __enter__(self) -> Lines:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()


def read_lines(path: Path) -> list[dict]:
    """The objects of a log; a torn last line is left out, a missing file is empty."""
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")[:-1]  # what follows the last line end is torn
    return [json.loads(line) for line in lines]


def _append(file: io.FileIO, line: bytes) -> None:
    """One write; what a full disk took of it is taken back."""
    end = file.seek(0, os.SEEK_END)
    try:
        if file.write(line) != len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError:
        with contextlib.suppress(OSError):
            file.truncate(end)
        raise


def _cut(path: Path, through: int) -> None:
    if not path.exists():
        return
    size = 0
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
        if _step(path, number, line) > through:
            break
        size += len(line) + 1
    os.truncate(path, size)


def _step(path: Path, number: int, line: bytes) -> int:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        raise UsageError(
            f"{path}, line {number} is damaged: {line[:40].decode(errors='replace')!r}; mend that "
            "line, or move the file away to begin another at the last checkpoint"
        ) from None


def _plain(value: float | int | bool | str | None) -> float | int | bool | str | None:
    if not isinstance(value, float):
        return value
    return float(f"{value:.9g}") if math.isfinite(value) else None  # 9 digits tell any FP32 apart

"""Logs of one JSON object a line, which a run that was cut off continues to the byte.

A line is written whole as soon as its step is done. After a crash the file may be ahead of the
checkpoint, and its last line may be torn; continuing first cuts the file back to the restored
step, and the steps done again write the same lines again. For that the lines hold deterministic
fields only; what a clock says goes to a file of its own.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from types import TracebackType


class Lines:
    """An open log; use as a context manager.

    Args:
      path: the file, created if missing.
      through: lines of later steps are cut off before anything is written.
    """

    def __init__(self, path: Path, through: int) -> None:
        _cut(path, through)
        self._file = path.open("a", buffering=1)

    def write(self, **fields: float | int | bool | str | None) -> None:
        """Append one line; what is not finite becomes null, which JSON can hold."""
        self._file.write(json.dumps({k: _plain(v) for k, v in fields.items()}) + "\n")

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


def _cut(path: Path, through: int) -> None:
    if not path.exists():
        return
    size = 0
    for line in path.read_bytes().splitlines(keepends=True):
        if not line.endswith(b"\n") or json.loads(line)["step"] > through:
            break
        size += len(line)
    os.truncate(path, size)


def _plain(value: float | int | bool | str | None) -> float | int | bool | str | None:
    if not isinstance(value, float):
        return value
    return float(f"{value:.9g}") if math.isfinite(value) else None  # 9 digits tell any FP32 apart

"""Files that are either whole or not there.

A file is written beside its place and renamed into it, which is one act of the file system: a
process killed at any moment leaves the old content or the new, never half of it.
"""

from __future__ import annotations

import json
import os
from pathlib import Path


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write `content` to `path` in one act; nothing is touched when it is there already."""
    data = content.encode() if isinstance(content, str) else content
    if path.exists() and path.read_bytes() == data:
        return
    temporary = temporary_path(path)
    temporary.write_bytes(data)
    os.replace(temporary, path)


def write_json(path: Path, value: object) -> None:
    """`write_atomically`, of indented JSON."""
    write_atomically(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def temporary_path(path: Path) -> Path:
    """Where to write what will be renamed to `path`: the same folder and suffix, hidden."""
    return path.with_name(f".{path.stem}.writing{path.suffix}")

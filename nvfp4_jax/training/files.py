"""Files that are either whole or not there.

A file is written beside its place and renamed into it, which is one act of the file system: a
process killed at any moment leaves the old content or the new, never half of it. So does a disk
that is full, or a folder that became read-only, and it is told by name (`StorageError`).
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from nvfp4_jax.training.errors import StorageError, reason


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write `content` to `path` in one act; nothing is touched when it is there already."""
    data = content.encode() if isinstance(content, str) else content
    if path.exists() and path.read_bytes() == data:
        return
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def write_json(path: Path, value: object) -> None:
    """`write_atomically`, of indented JSON."""
    write_atomically(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Where to write what becomes `path` when the block ends; gone when it does not end well."""
    temporary = temporary_path(path)
    with storing(path):
        try:
            yield temporary
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def storing(path: Path) -> Iterator[None]:
    """While open, what the operating system refuses is raised as a `StorageError` about `path`."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise StorageError(
            f"cannot write {path}: {reason(error)}; what was written before is whole, and the "
            "same command continues from the last checkpoint"
        ) from error


def temporary_path(path: Path) -> Path:
    """Where to write what will be renamed to `path`: the same folder and suffix, hidden."""
    return path.with_name(f".{path.stem}.writing{path.suffix}")

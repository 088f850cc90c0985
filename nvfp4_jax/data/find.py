"""From the words of a command line to sources that can be read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nvfp4_jax.data.options import Prepare
from nvfp4_jax.data.records import json_lines, parquet
from nvfp4_jax.data.source import Reader, text_files, visible_files
from nvfp4_jax.training.errors import UsageError

DEBIAN_DOCS = "debian-docs"
RECORDS = {".jsonl": json_lines, ".parquet": parquet}


def find_sources(options: Prepare) -> list[Reader]:
    """What to read, in the order of the command line.

    Raises:
      UsageError: nothing to read, or a source that is not there.
    """
    if not options.sources:
        raise UsageError(f"name a source: a folder, a .jsonl or .parquet file, or {DEBIAN_DOCS}")
    return [reader for word in options.sources for reader in _source(word, options)]


def _source(word: str, options: Prepare) -> list[Reader]:
    path = Path(word)
    if path.is_dir():
        return _folder(path, options.field)
    if path.suffix in RECORDS:
        return [RECORDS[path.suffix](path.name, path, options.field)]
    if path.exists():
        return [text_files(path.name, path.parent, [path])]
    raise UsageError(
        f"source {word}: no such folder or file; give one, or {DEBIAN_DOCS} for the documentation "
        "of Debian"
    )


def _folder(root: Path, field: str) -> list[Reader]:
    paths = visible_files(root)
    if not paths:
        raise UsageError(f"source {root}: the folder holds no files")
    texts = [path for path in paths if path.suffix not in RECORDS]
    readers = [
        RECORDS[path.suffix](path.relative_to(root).as_posix(), path, field)
        for path in paths
        if path.suffix in RECORDS
    ]
    return [*_texts(root, texts), *readers]


def _texts(root: Path, paths: Sequence[Path]) -> list[Reader]:
    return [text_files(root.absolute().name, root, paths)] if paths else []

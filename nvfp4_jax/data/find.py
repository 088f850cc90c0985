"""From the words of a command line to sources that can be read."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from nvfp4_jax.data.options import Prepare
from nvfp4_jax.data.packages import Package, fetch, package_reader, read_list
from nvfp4_jax.data.records import json_lines, parquet
from nvfp4_jax.data.report import part
from nvfp4_jax.data.source import Reader, text_files, visible_files
from nvfp4_jax.training.errors import UsageError

LISTS = {"debian-docs": Path(__file__).parent / "debian_docs.toml"}
KINDS = f"a folder, a .jsonl or .parquet file, or {', '.join(LISTS)}"
RECORDS = {".jsonl": json_lines, ".parquet": parquet}


def find_sources(options: Prepare, stack: contextlib.ExitStack, console: Console) -> list[Reader]:
    """What to read, in the order of the command line; packages are fetched now.

    Args:
      options: the command line.
      stack: what is fetched and not to be kept is removed with it.
      console: for the progress.

    Raises:
      UsageError: nothing to read, or a source that is not there.
    """
    if not options.sources:
        raise UsageError(f"name a source: {KINDS}")
    lists = {word: read_list(LISTS[word]) for word in options.sources if word in LISTS}
    others = {word: _source(word, options) for word in options.sources if word not in lists}
    fetched = {word: _packages(lists[word], options, stack, console) for word in lists}
    return [reader for word in options.sources for reader in (others | fetched)[word]]


def _packages(
    packages: Sequence[Package], options: Prepare, stack: contextlib.ExitStack, console: Console
) -> list[Reader]:
    folder = options.packages or Path(stack.enter_context(tempfile.TemporaryDirectory()))
    if not folder.is_dir():
        raise UsageError(f"--packages {folder}: no such folder; make it")
    readers = []
    with part(console, "fetching packages", len(packages)) as show:
        for package in packages:
            readers.append(package_reader(package, fetch(package, folder, options.any_version)))
            show(len(readers), f"{readers[-1].name} {readers[-1].version}")
        show(len(readers), f"{len(readers)} packages")
    return readers


def _source(word: str, options: Prepare) -> list[Reader]:
    path = Path(word)
    if path.is_dir():
        return _folder(path, options.field)
    if path.suffix in RECORDS:
        return [RECORDS[path.suffix](path.name, path, options.field)]
    if path.exists():
        return [text_files(path.name, path.parent, [path])]
    raise UsageError(f"source {word}: no such folder or file; give {KINDS}")


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

"""Files of many documents: JSON lines and Parquet, one record a document, one field its text.

A record that is none is no reason to guess: it is named by file and line, and nothing is made.
Records whose text is empty or blank are left out and counted.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from nvfp4_jax.data.extra import library
from nvfp4_jax.data.source import Reader, Tally, unreadable
from nvfp4_jax.training.corpus import Document
from nvfp4_jax.training.errors import UsageError

_CHUNK = 2**22
_ROWS = 1024  # of a Parquet file at once


def json_lines(name: str, path: Path, field: str) -> Reader:
    """The objects of a .jsonl file, one a line."""

    def read(tally: Tally) -> Iterator[Document]:
        for number, line in _lines(path, tally):
            if line.strip():
                yield Document(f"{name}#{number}", _text(path, number, line, field))
            else:
                tally.left_out += 1

    return Reader(name, lambda tally: tally.texts(read(tally)))


def parquet(name: str, path: Path, field: str) -> Reader:
    """The rows of a .parquet file; only the column `field` is read."""

    def read(tally: Tally) -> Iterator[Document]:
        _digest(path, tally)
        for number, value in enumerate(_column(path, field), 1):
            if not isinstance(value, str | None):
                raise UsageError(
                    f"{path}: column {field!r} holds {type(value).__name__}, not text; "
                    "choose another by --field"
                )
            yield Document(f"{name}#{number}", (value or "").encode())

    return Reader(name, lambda tally: tally.texts(read(tally)))


def _lines(path: Path, tally: Tally) -> Iterator[tuple[int, bytes]]:
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                tally.digest.update(line)
                yield number, line
    except OSError as error:
        raise unreadable(path, error) from None


def _text(path: Path, number: int, line: bytes, field: str) -> bytes:
    place = f"{path}, line {number}"
    try:
        record = msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{place}: not JSON: {error}; mend or remove the line") from None
    if not isinstance(record, dict):
        raise UsageError(
            f"{place}: expected an object, {{{field!r}: ...}}; mend or remove the line"
        )
    if field not in record:
        raise UsageError(f"{place}: no field {field!r}; it has {_names(record)}; choose by --field")
    text = record[field]
    if not isinstance(text, str):
        raise UsageError(
            f"{place}: field {field!r} holds {type(text).__name__}, not text; choose by --field"
        )
    return text.encode()


def _column(path: Path, field: str) -> Iterator[Any]:
    arrow, tables = library("pyarrow"), library("pyarrow.parquet")
    try:
        with tables.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if field not in names:
                raise UsageError(
                    f"{path}: no column {field!r}; it has {_names(names)}; choose by --field"
                )
            for rows in file.iter_batches(batch_size=_ROWS, columns=[field]):
                yield from rows.column(0).to_pylist()
    except (OSError, arrow.ArrowException) as error:
        raise unreadable(path, error) from None


def _digest(path: Path, tally: Tally) -> None:
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                tally.digest.update(chunk)
    except OSError as error:
        raise unreadable(path, error) from None


def _names(names: Any) -> str:
    shown = sorted(map(str, names))
    return ", ".join(shown[:5]) + (", ..." if len(shown) > 5 else "") if shown else "none"

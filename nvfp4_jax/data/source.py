"""Where documents come from, and what is noted of them on the way.

A source is read once, from beginning to end; what it was is known when it has been. Text files
are documents by their path below their folder, and records by their file's path and number, from
1: `wiki/a.jsonl#17`. These paths decide what is held out, so they contain nothing of the place
where the sources lie.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nvfp4_jax.training.corpus import Document, is_text, is_visible
from nvfp4_jax.training.errors import UsageError
from nvfp4_jax.training.manifest import Source


@dataclass
class Tally:
    """What is counted while a source is read.

    Attributes:
      digest: of what was read, as it was read.
      documents: that were found.
      left_out: files or records without text.
    """

    digest: Any = field(default_factory=hashlib.sha256)
    documents: int = 0
    left_out: int = 0

    def texts(self, documents: Iterator[Document]) -> Iterator[Document]:
        """Those with text in them; both kinds are counted."""
        for document in documents:
            if is_text(document.data):
                self.documents += 1
                yield document
            else:
                self.left_out += 1


@dataclass(frozen=True)
class Reader:
    """A source that has not been read.

    Attributes:
      name: a package, a file or a folder.
      version: of the package.
      read: its documents, told to the `Tally` as they come.
    """

    name: str
    read: Callable[[Tally], Iterator[Document]]
    version: str = ""

    def note(self, tally: Tally) -> Source:
        """What the manifest says of it, once it has been read."""
        digest = tally.digest.hexdigest()
        return Source(self.name, self.version, digest, tally.documents, tally.left_out)


def text_files(name: str, root: Path, paths: Sequence[Path]) -> Reader:
    """Text files below `root`; the digest is of their names and contents, in order."""

    def read(tally: Tally) -> Iterator[Document]:
        for path in paths:
            document = Document(_utf8(path.relative_to(root).as_posix()), read_file(path))
            content = hashlib.sha256(document.data).hexdigest()
            tally.digest.update(f"{document.path}\0{content}\n".encode())
            yield document

    return Reader(name, lambda tally: tally.texts(read(tally)))


def visible_files(root: Path) -> list[Path]:
    """The files below a folder that are not hidden, in the order of their paths."""
    return sorted(path for path in root.rglob("*") if is_visible(root, path))


def _utf8(path: str) -> str:
    try:
        path.encode()
    except UnicodeEncodeError:
        raise UsageError(f"the name of {path!r} is not UTF-8; rename the file") from None
    return path


def read_file(path: Path) -> bytes:
    """The bytes of a file, or a `UsageError` that names it."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise unreadable(path, error) from None


def unreadable(path: Path, error: Exception) -> UsageError:
    """What to tell of a file that cannot be read."""
    reason = getattr(error, "strerror", None) or error
    return UsageError(f"cannot read {path}: {reason}; mend or remove it")

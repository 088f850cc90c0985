"""One pass over the sources: duplicates dropped, the rest laid down to be read again.

Documents are read twice, to train a tokenizer and to be cut by it, but sources are not: taking a
page out of its HTML costs more than all the rest. So what was read goes to a file beside the
shards, which is removed in the end. Which documents are held out is known when all paths are:
each is chosen by its own hash (`corpus.is_held_out`), but one half of a handful may come out
empty, and then the document of the lowest hash is held out alone, as for a folder of texts.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from nvfp4_jax.data.source import Reader, Tally
from nvfp4_jax.keys import layer_hash
from nvfp4_jax.training.corpus import Document, cut, is_held_out
from nvfp4_jax.training.errors import UsageError
from nvfp4_jax.training.manifest import Source

_HEADER = struct.Struct("<II")  # bytes of the path, bytes of the text


@dataclass(frozen=True)
class Spool:
    """Every document once, on disk.

    Attributes:
      path: the file.
      sources: what they came from.
      documents, bytes: how many, and of how much text.
      duplicates: documents dropped for an equal one before them.
      lone: the one document to hold out, where hashes would leave a half empty.
    """

    path: Path
    sources: tuple[Source, ...]
    documents: int
    bytes: int
    duplicates: int
    lone: str | None

    def held_out(self, document: Document) -> bool:
        """Whether this document is held out."""
        return is_held_out(document.path) if self.lone is None else document.path == self.lone

    def read(self) -> Iterator[Document]:
        """The documents, in the order of the sources."""
        with self.path.open("rb") as file:
            while header := file.read(_HEADER.size):
                name, size = _HEADER.unpack(header)
                yield Document(file.read(name).decode(), file.read(size))


def gather(
    readers: Iterable[Reader], path: Path, progress: Callable[[int, Document], None]
) -> Spool:
    """Read every source and write what is in it to `path`.

    `progress` is told of each document, and of how many sources were read before its own. In
    memory is a digest of each document, a hundred bytes.

    Raises:
      UsageError: a source that cannot be read, or no text in any.
    """
    writer, sources = _Writer(path), []
    with writer.file:
        for number, reader in enumerate(readers):
            tally = Tally()
            for document in reader.read(tally):
                progress(number, document)
                writer.add(document)
            sources.append(reader.note(tally))
    if not writer.documents:
        raise UsageError(f"no text in {', '.join(source.name for source in sources)}")
    if writer.documents == 1:
        return _gather_halves(path, tuple(sources), writer)
    return writer.spool(tuple(sources))


def _gather_halves(path: Path, sources: tuple[Source, ...], alone: _Writer) -> Spool:
    """One document alone is cut, so that there are two halves."""
    (document,) = alone.spool(sources).read()
    writer = _Writer(path)
    with writer.file:
        for part in cut(document):
            writer.add(part)
    return writer.spool(sources)


class _Writer:
    """An open spool, and what it has seen."""

    def __init__(self, path: Path) -> None:
        self.path, self.file = path, path.open("wb")
        self.documents = self.bytes = self.duplicates = self._held_out = 0
        self._seen: set[bytes] = set()
        self._lowest = (2**32, "")

    def add(self, document: Document) -> None:
        """Write a document, unless one of the same bytes was written before."""
        digest = hashlib.sha256(document.data).digest()[:16]
        if digest in self._seen:
            self.duplicates += 1
            return
        self._seen.add(digest)
        self.documents += 1
        self.bytes += len(document.data)
        self._held_out += is_held_out(document.path)
        self._lowest = min(self._lowest, (int(layer_hash(document.path)), document.path))
        path = document.path.encode()
        self.file.write(_HEADER.pack(len(path), len(document.data)) + path + document.data)

    def spool(self, sources: tuple[Source, ...]) -> Spool:
        """What was written."""
        lone = self._lowest[1] if self._held_out in (0, self.documents) else None
        return Spool(self.path, sources, self.documents, self.bytes, self.duplicates, lone)

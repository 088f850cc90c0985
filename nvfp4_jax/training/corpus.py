"""The text: which files, which of them are held out, and what they looked like.

There is always something to train on: the source of Python's own standard library, which every
machine that can run this already has. Left out of it are tests (two thirds of the bytes, and
absent from some distributions), tables written by programs (`encodings`, `pydoc_data`) and
whatever was installed beside it.

A file is *held out* by a hash of its path, so the choice survives new files, other machines and
other seeds; no run ever trains on what another run is judged by. Documents are raw bytes: a byte
is a token, nothing is normalized, and a loss in nats a token is a loss in bits a byte / ln 2.
"""

from __future__ import annotations

import hashlib
import platform
import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from nvfp4_jax.keys import layer_hash
from nvfp4_jax.training.errors import UsageError
from nvfp4_jax.training.manifest import is_prepared
from nvfp4_jax.training.prepared import PreparedCorpus, load_prepared

HELD_OUT_ONE_IN = 20
_NOT_PROSE = {"site-packages", "dist-packages", "test", "tests", "idle_test"}
_TABLES = {"encodings", "pydoc_data", "__pycache__"}


@dataclass(frozen=True)
class Document:
    """One file: its path below the corpus' root, and its bytes."""

    path: str
    data: bytes


@dataclass(frozen=True)
class Corpus:
    """Documents to train on and documents to be judged by.

    Attributes:
      name: what a person calls it.
      train, held_out: never empty, in the order of their paths.
      skipped: files of the folder that are not UTF-8 text.
    """

    name: str
    train: tuple[Document, ...]
    held_out: tuple[Document, ...]
    skipped: tuple[str, ...] = ()

    vocabulary = 256  # a byte is a token
    bytes_per_token = 1.0

    @property
    def digests(self) -> dict[str, str]:
        """Path -> the start of the SHA-256 of its bytes, for both halves."""
        return {d.path: _digest(d.data) for d in (*self.train, *self.held_out)}

    @property
    def fingerprint(self) -> str:
        """One word for all of it: equal exactly when the paths and their bytes are."""
        return _digest(repr(sorted(self.digests.items())).encode())

    def describe(self) -> str:
        """A line about it."""
        skipped = f", {len(self.skipped)} that are not UTF-8 text left out" if self.skipped else ""
        return (
            f"{self.name}: {len(self.train)} files to train on, {len(self.held_out)} held out"
            f"{skipped}"
        )


AnyCorpus = Corpus | PreparedCorpus


def load_corpus(folder: str | Path | None = None) -> AnyCorpus:
    """The corpus of a folder, of text files or prepared; the standard library's source for None.

    Raises:
      UsageError: the folder is missing, empty, without text, holds a file that cannot be read, or
        is prepared and not whole.
    """
    if folder is None:
        return _standard_library()
    root = Path(folder)
    return load_prepared(root) if is_prepared(root) else _folder(root)


def is_held_out(path: str) -> bool:
    """Whether the document of this path is held out: one in twenty, by the path's hash."""
    return int(layer_hash(path)) < 2**32 // HELD_OUT_ONE_IN


def describe_change(before: dict[str, str], after: dict[str, str]) -> str:
    """What differs between two `Corpus.digests`, in a few words, naming up to three files."""
    changes = {
        "added": sorted(after.keys() - before.keys()),
        "removed": sorted(before.keys() - after.keys()),
        "changed": sorted(p for p in before.keys() & after.keys() if before[p] != after[p]),
    }
    words = [f"{len(paths)} {what} ({_few(paths)})" for what, paths in changes.items() if paths]
    return "; ".join(words) if words else "nothing"


def _standard_library() -> Corpus:
    root = Path(sysconfig.get_path("stdlib"))
    name = f"the standard library of Python {platform.python_version()}"
    documents = _read(root, (p for p in sorted(root.rglob("*.py")) if _is_library(root, p)))
    return _split(name, [d for d in documents if is_text(d.data)])


def _is_library(root: Path, path: Path) -> bool:
    parts = path.relative_to(root).parts
    generated = parts[-1].startswith("_sysconfigdata") or parts[0].startswith("config-")
    return not generated and not (_NOT_PROSE | _TABLES) & set(parts)


def _folder(root: Path) -> Corpus:
    if not root.is_dir():
        what = "is a file" if root.exists() else "does not exist"
        raise UsageError(f"--data {root}: {what}; give a folder that holds text files")
    paths = sorted(p for p in root.rglob("*") if is_visible(root, p))
    if not paths:
        raise UsageError(f"--data {root}: the folder holds no files; put UTF-8 text files in it")
    documents = _read(root, paths)
    texts = [d for d in documents if is_text(d.data)]
    if not texts:
        found = _few([d.path for d in documents])
        raise UsageError(f"--data {root}: no file in it holds UTF-8 text (found {found})")
    skipped = tuple(d.path for d in documents if not is_text(d.data))
    return _split(str(root), texts, skipped)


def is_visible(root: Path, path: Path) -> bool:
    """Whether `path` below `root` is a file, even one that cannot be read, and not hidden."""
    hidden = any(part.startswith(".") for part in path.relative_to(root).parts)
    return not hidden and (path.is_file() or (path.is_symlink() and not path.exists()))


def _read(root: Path, paths: Iterable[Path]) -> list[Document]:
    documents = []
    for path in paths:
        try:
            documents.append(Document(path.relative_to(root).as_posix(), path.read_bytes()))
        except OSError as error:
            reason = error.strerror or error
            raise UsageError(f"--data: cannot read {path}: {reason}; mend or remove it") from None
    return documents


def is_text(data: bytes) -> bool:
    """Whether a file holds UTF-8 text, and something else than blanks."""
    if not data.strip() or b"\0" in data:
        return False
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _split(name: str, documents: list[Document], skipped: tuple[str, ...] = ()) -> Corpus:
    if len(documents) == 1:
        documents = cut(documents[0])
    paths = [d.path for d in documents]
    chosen = {path for path in paths if is_held_out(path)}
    if not chosen or len(chosen) == len(documents):  # a handful of files: the lowest hash alone
        chosen = {min(paths, key=layer_hash)}
    train = tuple(d for d in documents if d.path not in chosen)
    held_out = tuple(d for d in documents if d.path in chosen)
    return Corpus(name, train, held_out, skipped)


def cut(document: Document) -> list[Document]:
    """A file alone becomes two documents, the smaller of which the hash may not pick to train."""
    at = len(document.data) * (HELD_OUT_ONE_IN - 1) // HELD_OUT_ONE_IN
    while document.data[at] & 0xC0 == 0x80:  # inside a character
        at += 1
    parts = [document.data[:at], document.data[at:]]
    names = sorted((f"{document.path}#{i}" for i in range(2)), key=layer_hash, reverse=True)
    return [Document(n, part) for n, part in zip(names, parts, strict=True)]


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def _few(paths: list[str]) -> str:
    return ", ".join(paths[:3]) + (", ..." if len(paths) > 3 else "")

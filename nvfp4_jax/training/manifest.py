"""What a prepared corpus says of itself: `manifest.json`, the last file to be written.

    FOLDER/manifest.json        this
    FOLDER/tokenizer.json       of the `tokenizers` library; not there where tokens are bytes
    FOLDER/token_bytes.npy      (vocabulary,) how many bytes of text each token stands for
    FOLDER/held_out.txt         the paths of the held-out documents
    FOLDER/train-00000.npy ...  tokens of the documents to train on, each document after a separator
    FOLDER/held_out-00000.npy   likewise, to be judged by

Every file is listed with its size and SHA-256. Sizes are checked whenever a run starts, which
costs nothing; contents by `nvfp4 data verify`, which reads all of it. A folder with shards and no
manifest is one that was never finished, or not wholly copied, and is refused.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec

from nvfp4_jax.training.errors import UsageError

MANIFEST = "manifest.json"
FORMAT = "nvfp4_jax tokens 1"
FIRST_SHARD = "train-00000.npy"
REMEDY = "copy the folder anew, or prepare it again (nvfp4 data prepare)"
_CHUNK = 2**24


class Stored(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file of the folder: its name, size and SHA-256."""

    file: str
    bytes: int
    sha256: str


class Shard(Stored, frozen=True, forbid_unknown_fields=True):
    """A file of `tokens` tokens, at its end; what is before them is the header of NumPy."""

    tokens: int


class Half(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The documents to train on, or those held out.

    Attributes:
      documents: how many.
      bytes: of their text, UTF-8.
      tokens: of all shards, a separator for each document included.
      shards: in order; documents run across their ends.
    """

    documents: int
    bytes: int
    tokens: int
    shards: tuple[Shard, ...]


class Source(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where text came from.

    Attributes:
      name: a package or a file.
      version: of the package; empty for a file.
      sha256: of what was read, as it was read.
      documents: taken from it, duplicates and held-out ones included.
      left_out: files or records without text in it.
    """

    name: str
    version: str
    sha256: str
    documents: int
    left_out: int


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A prepared corpus.

    Attributes:
      name: what a person calls it.
      vocabulary: every token is below it; a model's vocabulary is at least this.
      separator: the token that opens each document.
      dtype: of the shards, little-endian: uint16 or uint32.
      duplicates: documents left out because an equal one came before.
      files: the tokenizer, the bytes of each token, the list of what is held out.
    """

    format: str
    name: str
    sources: tuple[Source, ...]
    vocabulary: int
    separator: int
    dtype: str
    duplicates: int
    train: Half
    held_out: Half
    files: tuple[Stored, ...]

    @property
    def stored(self) -> tuple[Stored, ...]:
        """Every file of the folder but the manifest."""
        return (*self.files, *self.train.shards, *self.held_out.shards)


def is_prepared(folder: Path) -> bool:
    """Whether a folder holds token shards, whole or not, rather than texts."""
    if (folder / FIRST_SHARD).exists():
        return True
    try:
        return FORMAT.encode() in (folder / MANIFEST).read_bytes()[:200]
    except OSError:
        return False


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a prepared folder, once every file has the size it says.

    Raises:
      UsageError: no manifest, or not a whole one, or a file missing or of another size.
    """
    path = folder / MANIFEST
    try:
        manifest = msgspec.json.decode(path.read_bytes(), type=Manifest)
    except FileNotFoundError:
        raise UsageError(
            f"--data {folder}: token shards without a {MANIFEST}, which is written last: "
            f"they were prepared or copied only in part; {REMEDY}"
        ) from None
    except OSError as error:
        raise UsageError(f"--data: cannot read {path}: {error.strerror}") from None
    except msgspec.DecodeError as error:
        raise UsageError(f"--data: {path} is damaged: {error}; {REMEDY}") from None
    if manifest.format != FORMAT:
        raise UsageError(f"--data: {path} is of the format {manifest.format!r}, not {FORMAT!r}")
    for stored in manifest.stored:
        _check_size(folder, stored)
    return manifest


def check_contents(folder: Path, stored: Stored) -> None:
    """Raise a `UsageError` when a file does not have the SHA-256 that its manifest says."""
    _check_size(folder, stored)
    found = sha256(folder / stored.file)
    if found != stored.sha256:
        raise UsageError(
            f"--data: {folder / stored.file} is damaged: its sha256 is {found}, in {MANIFEST} "
            f"{stored.sha256}; {REMEDY}"
        )


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from None
    return digest.hexdigest()


def _check_size(folder: Path, stored: Stored) -> None:
    path = folder / stored.file
    try:
        size = path.stat().st_size
    except OSError as error:
        raise UsageError(f"--data: cannot read {path}: {error.strerror}; {REMEDY}") from None
    if size != stored.bytes:
        raise UsageError(
            f"--data: {path} has {size:,} bytes, in {MANIFEST} {stored.bytes:,}; {REMEDY}"
        )

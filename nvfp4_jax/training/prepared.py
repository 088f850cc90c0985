"""A corpus of token shards, for training: what `nvfp4 data prepare` made."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nvfp4_jax.training.errors import UsageError
from nvfp4_jax.training.manifest import MANIFEST, REMEDY, Half, Manifest, read_manifest
from nvfp4_jax.training.shards import ShardStream

TOKEN_BYTES = "token_bytes.npy"


@dataclass(frozen=True)
class PreparedCorpus:
    """As `corpus.Corpus`, on disk.

    Attributes:
      name: what a person calls it.
      train, held_out: their tokens.
      manifest: what the folder says of itself.
    """

    name: str
    train: ShardStream
    held_out: ShardStream
    manifest: Manifest

    @property
    def vocabulary(self) -> int:
        """Every token is below it."""
        return self.manifest.vocabulary

    @property
    def bytes_per_token(self) -> float:
        """Bytes of text for each token of the training half, separators apart."""
        half = self.manifest.train
        return half.bytes / max(half.tokens - half.documents, 1)

    @property
    def digests(self) -> dict[str, str]:
        """File -> the start of its SHA-256."""
        return {stored.file: stored.sha256[:16] for stored in self.manifest.stored}

    @property
    def fingerprint(self) -> str:
        """One word for all of it: equal exactly when the files are."""
        return hashlib.sha256(repr(sorted(self.digests.items())).encode()).hexdigest()[:16]

    def describe(self) -> str:
        """A line about it."""
        train, held_out = self.manifest.train, self.manifest.held_out
        return (
            f"{self.name}: {train.tokens:,} tokens of {train.documents:,} documents to train on, "
            f"{held_out.tokens:,} of {held_out.documents:,} held out; "
            f"{self.bytes_per_token:.2f} bytes a token"
        )


def load_prepared(folder: Path) -> PreparedCorpus:
    """The corpus of a folder that `manifest.is_prepared`.

    Raises:
      UsageError: as `manifest.read_manifest`, or a table of the tokens' bytes that is no such.
    """
    manifest = read_manifest(folder)
    token_bytes = _token_bytes(folder / TOKEN_BYTES, manifest.vocabulary)

    def stream(half: Half) -> ShardStream:
        return ShardStream(folder, manifest, half, token_bytes)

    for name, half in (("train", manifest.train), ("held_out", manifest.held_out)):
        if half.tokens != sum(shard.tokens for shard in half.shards) or not half.documents:
            raise UsageError(
                f"--data: {folder / MANIFEST}: the shards of {name} do not add up to "
                f"{half.tokens:,} tokens of at least one document; {REMEDY}"
            )
    return PreparedCorpus(
        manifest.name, stream(manifest.train), stream(manifest.held_out), manifest
    )


def _token_bytes(path: Path, vocabulary: int) -> np.ndarray:
    try:
        table = np.load(path)
    except (OSError, ValueError) as error:
        raise UsageError(f"--data: cannot read {path}: {error}; {REMEDY}") from None
    if table.shape != (vocabulary,):
        raise UsageError(
            f"--data: {path} has the shape {table.shape}, not ({vocabulary},); {REMEDY}"
        )
    return table

"""Tokens on disk: one stream over many files of fixed size.

A shard is an array of NumPy, so that `np.load(path, mmap_mode="r")` shows it to anyone. A run reads
its windows with `pread` instead of through a map: both come from the page cache, but a page that
cannot be read, or is no longer there, kills a process that has it mapped, without a word, while
`pread` says so, and the run saves its state and names the file.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from nvfp4_jax.training.errors import StorageError, UsageError
from nvfp4_jax.training.manifest import REMEDY, Half, Manifest, Shard


class ShardStream:
    """One half of a prepared corpus as a `stream.Stream`.

    Attributes:
      separator: the token that opens every document.
      token_bytes: (vocabulary,) the bytes of text that each token stands for.
      documents: how many.
    """

    def __init__(
        self, folder: Path, manifest: Manifest, half: Half, token_bytes: np.ndarray
    ) -> None:
        """Nothing is read before it is asked for; sizes were checked with the manifest."""
        self.separator, self.token_bytes = manifest.separator, token_bytes
        self.documents = half.documents
        self._folder, self._shards = folder, half.shards
        self._dtype = np.dtype(manifest.dtype).newbyteorder("<")
        self._ends = np.cumsum([shard.tokens for shard in half.shards])
        self._vocabulary = manifest.vocabulary

    def __len__(self) -> int:
        return int(self._ends[-1]) if self._ends.size else 0

    def read(self, start: int, stop: int) -> np.ndarray:
        """As `Stream`, across the ends of shards.

        Raises:
          StorageError: a shard cannot be read.
          UsageError: a shard has become shorter, or holds what is no token.
        """
        pieces = [np.empty(0, np.int32)]
        while start < stop:
            number = int(np.searchsorted(self._ends, start, side="right"))
            shard, end = self._shards[number], min(stop, int(self._ends[number]))
            first = start - int(self._ends[number]) + shard.tokens
            pieces.append(self._read_shard(shard, first, end - start))
            start = end
        return np.concatenate(pieces)

    def _read_shard(self, shard: Shard, first: int, count: int) -> np.ndarray:
        path, width = self._folder / shard.file, self._dtype.itemsize
        header = shard.bytes - shard.tokens * width
        data = _pread(path, header + first * width, count * width)
        tokens = np.frombuffer(data, self._dtype).astype(np.int32)
        if tokens.max() >= self._vocabulary:
            raise UsageError(
                f"--data: {path} is damaged: it holds the token {tokens.max()}, and the "
                f"vocabulary is {self._vocabulary}; {REMEDY}"
            )
        return tokens


def _pread(path: Path, offset: int, size: int) -> bytes:
    try:
        with path.open("rb", buffering=0) as file:
            data = os.pread(file.fileno(), size, offset)
    except OSError as error:
        raise StorageError(
            f"cannot read {path}: {error.strerror}; when it can be read again, the same command "
            "continues"
        ) from None
    if len(data) < size:
        raise UsageError(f"--data: {path} has become shorter than it was; {REMEDY}")
    return data

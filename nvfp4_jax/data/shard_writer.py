"""Tokens to shards: files of a fixed number of tokens, each on disk before it is counted.

A shard is `np.save`'s format. It is hashed as it was read back, after the disk has it: what the
manifest says is what is there.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

import numpy as np

from nvfp4_jax.training.manifest import Half, Shard, Stored, sha256


class ShardWriter:
    """The shards of one half of a corpus, `folder`/`name`-00000.npy and so on."""

    def __init__(self, folder: Path, name: str, size: int, dtype: np.dtype) -> None:
        """Shards of `size` tokens, the last one of what is left."""
        self._folder, self._name, self._dtype = folder, name, dtype.newbyteorder("<")
        self._buffer, self._filled = np.empty(size, self._dtype), 0
        self._shards: list[Shard] = []
        self._documents = self._bytes = 0

    def add(self, tokens: np.ndarray, size: int) -> None:
        """A document: its tokens, opened by the separator, and the bytes of its text."""
        self._documents += 1
        self._bytes += size
        while tokens.size:
            part = tokens[: self._buffer.size - self._filled]
            self._buffer[self._filled : self._filled + part.size] = part
            self._filled += part.size
            tokens = tokens[part.size :]
            if self._filled == self._buffer.size:
                self._write()

    def finish(self) -> Half:
        """Write what is left; what the manifest says of this half."""
        if self._filled:
            self._write()
        tokens = sum(shard.tokens for shard in self._shards)
        return Half(self._documents, self._bytes, tokens, tuple(self._shards))

    def _write(self) -> None:
        path = self._folder / f"{self._name}-{len(self._shards):05}.npy"
        stored = store_array(path, self._buffer[: self._filled])
        self._shards.append(Shard(stored.file, stored.bytes, stored.sha256, self._filled))
        self._filled = 0


def store_array(path: Path, array: np.ndarray) -> Stored:
    """Write an array to stay, and say what is there.

    `np.save` itself would say of a full disk how many items it wrote, and not that it is full.
    """
    with path.open("wb") as file:
        header = np.lib.format.header_data_from_array_1_0(array)
        np.lib.format.write_array_header_1_0(file, header)
        file.write(array.data)
        _to_disk(file)
    return _stored(path)


def store_text(path: Path, text: str) -> Stored:
    """Write a text to stay, and say what is there."""
    with path.open("wb") as file:
        file.write(text.encode())
        _to_disk(file)
    return _stored(path)


def _to_disk(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _stored(path: Path) -> Stored:
    return Stored(path.name, path.stat().st_size, sha256(path))

"""From documents to batches: packing is arithmetic on one long stream.

All documents are laid end to end, each opened by a separator:

    255 'i' 'm' 'p' 'o' 'r' 't' ... 255 'd' 'e' 'f' ... 255 ...

Bytes are the tokens, and 255 is free to separate them: no UTF-8 text contains it.

Window k of length L reads tokens kL .. kL+L: the first L are inputs, the last L their targets, so
that every byte is predicted exactly once an epoch. Windows do not know of documents; `segment_ids`
do: they count the separators met so far. A recurrent state or an attention that respects them
never sees another document, and a target in another segment than its input (a separator) is
masked. Padding needs no case of its own: it is a row of empty documents.

Any window is found by its number alone, so the shuffle is a permutation of numbers, the iterator's
whole state is one integer, and a run resumes without reading what it has read before.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict, cast

import grain
import numpy as np

from nvfp4_jax.keys import layer_hash
from nvfp4_jax.training.corpus import Document

SEPARATOR = 255
VOCABULARY = 256  # what the byte tokenizer can produce; a model's vocabulary is at least this
EPOCHS = 2**24  # no end in practice; grain's endless repeat overflows in batches of one


class Batch(TypedDict):
    """Arrays (batch, length), int32 but for the boolean mask."""

    tokens: np.ndarray
    targets: np.ndarray
    segment_ids: np.ndarray
    mask: np.ndarray


class Windows:
    """The windows of a packed stream as a random-access source for grain.

    Attributes:
      tokens: (windows * length + 1,) uint8, documents and their separators, padded.
      separators: the positions of the separators, ascending.
    """

    def __init__(self, documents: Sequence[Document], length: int, multiple: int = 1) -> None:
        """Pack `documents` into windows of `length`, padded to a multiple of `multiple` windows."""
        pieces = [_document(d.data) for d in documents]
        size = sum(piece.size for piece in pieces)
        rows = -(-max(size - 1, 1) // (length * multiple)) * multiple
        padding = np.full(rows * length + 1 - size, SEPARATOR, np.uint8)
        self.length = length
        self.tokens = np.concatenate([*pieces, padding])
        self.separators = np.flatnonzero(self.tokens == SEPARATOR)

    def __len__(self) -> int:
        return (self.tokens.size - 1) // self.length

    def __getitem__(self, index: int) -> Batch:
        if not 0 <= index < len(self):
            raise IndexError(f"window {index} of {len(self)}")
        start = index * self.length
        tokens = self.tokens[start : start + self.length + 1].astype(np.int32)
        positions = np.arange(start, start + self.length + 1)
        segments = np.searchsorted(self.separators, positions, side="right").astype(np.int32)
        segments -= segments[0]
        return Batch(
            tokens=tokens[:-1],
            targets=tokens[1:],
            segment_ids=segments[:-1],
            mask=segments[1:] == segments[:-1],
        )


def training_batches(
    documents: Sequence[Document], *, batch: int, length: int, seed: int
) -> grain.DatasetIterator[Batch]:
    """An endless, shuffled stream of batches; each epoch in another order.

    The same arguments give the same batches; `get_state` and `set_state` move to any of them.
    """
    # grain's epoch e is shuffled by seed + e: neighbouring run seeds must not share orders
    shuffle_seed = int(layer_hash(f"data/{seed}"))
    windows = grain.MapDataset.source(Windows(documents, length))
    batches = windows.shuffle(seed=shuffle_seed).repeat(EPOCHS).batch(batch)
    # the text is in memory: a thread would only fight for the interpreter's lock
    return iter(batches.to_iter_dataset(grain.ReadOptions(num_threads=0)))


def held_out_batches(
    documents: Sequence[Document], *, batch: int, length: int, count: int
) -> list[Batch]:
    """At most `count` batches, the same for every run whatever its seed; all windows if fewer."""
    windows = grain.MapDataset.source(Windows(documents, length, multiple=batch))
    batches = windows.shuffle(seed=0).batch(batch)
    return [cast(Batch, batches[i]) for i in range(min(count, len(batches)))]


def _document(data: bytes) -> np.ndarray:
    return np.concatenate([np.array([SEPARATOR], np.uint8), np.frombuffer(data, np.uint8)])

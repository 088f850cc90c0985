"""From a stream to batches: packing is arithmetic on one long line of tokens (see `stream`).

Window k of length L reads tokens kL .. kL+L: the first L are inputs, the last L their targets, so
that every token is predicted exactly once an epoch. Windows do not know of documents; `segment_ids`
do: they count the separators met so far. A recurrent state or an attention that respects them
never sees another document, and a target in another segment than its input (a separator) is
masked. Padding needs no case of its own: it is a row of empty documents.

Any window is found by its number alone, so the shuffle is a permutation of numbers, the iterator's
whole state is one integer, and a run resumes without reading what it has read before. Batch i is
the windows iB .. iB+B of the shuffled order: a host that is to feed some rows of it computes their
numbers, and reads no others. The order and the state know nothing of hosts, so a run goes on from
the same integer on any number of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict, cast

import grain
import numpy as np

from nvfp4_jax.keys import layer_hash
from nvfp4_jax.training.corpus import Document
from nvfp4_jax.training.stream import Stream, as_stream

EPOCHS = 2**24  # no end in practice; grain's endless repeat overflows in batches of one

Rows = Sequence[int] | np.ndarray


class Batch(TypedDict):
    """Arrays (batch, length), int32 but for the boolean mask."""

    tokens: np.ndarray
    targets: np.ndarray
    segment_ids: np.ndarray
    mask: np.ndarray


class Windows:
    """The windows of a stream as a random-access source for grain."""

    def __init__(self, stream: Stream, length: int, multiple: int = 1) -> None:
        """Cut `stream` into windows of `length`, padded to a multiple of `multiple` windows."""
        self.stream, self.length = stream, length
        self._count = -(-max(len(stream) - 1, 1) // (length * multiple)) * multiple

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Batch:
        if not 0 <= index < len(self):
            raise IndexError(f"window {index} of {len(self)}")
        tokens = self._read(index * self.length)
        segments = np.cumsum(tokens == self.stream.separator, dtype=np.int32)
        segments -= segments[0]
        return Batch(
            tokens=tokens[:-1],
            targets=tokens[1:],
            segment_ids=segments[:-1],
            mask=segments[1:] == segments[:-1],
        )

    def _read(self, start: int) -> np.ndarray:
        """A window and the token after it, (length + 1,); separators past the stream's end."""
        end = len(self.stream)
        found = self.stream.read(min(start, end), min(start + self.length + 1, end))
        missing = self.length + 1 - found.size
        return np.pad(found, (0, missing), constant_values=self.stream.separator)


def training_batches(
    text: Stream | Sequence[Document],
    *,
    batch: int,
    length: int,
    seed: int,
    rows: Rows | None = None,
) -> grain.DatasetIterator[Batch]:
    """An endless, shuffled stream of batches; each epoch in another order.

    The same arguments give the same batches; `get_state` and `set_state` move to any of them.
    With `rows`, arrays are (len(rows), length): these rows of each batch, in this order. The state
    does not depend on them.
    """
    # grain's epoch e is shuffled by seed + e: neighbouring run seeds must not share orders
    shuffle_seed = int(layer_hash(f"data/{seed}"))
    windows = grain.MapDataset.source(Windows(as_stream(text), length))
    batches = _batches(windows.shuffle(seed=shuffle_seed).repeat(EPOCHS), batch, rows)
    # the text is in memory or mapped: a thread would only fight for the interpreter's lock
    return iter(batches.to_iter_dataset(grain.ReadOptions(num_threads=0)))


def held_out_batches(
    text: Stream | Sequence[Document],
    *,
    batch: int,
    length: int,
    count: int,
    rows: Rows | None = None,
) -> list[Batch]:
    """At most `count` batches, the same for every run whatever its seed; all windows if fewer.

    With `rows`, only these rows of each, as in `training_batches`.
    """
    windows = grain.MapDataset.source(Windows(as_stream(text), length, multiple=batch))
    batches = _batches(windows.shuffle(seed=0), batch, rows)
    return [cast(Batch, batches[i]) for i in range(min(count, len(batches)))]


def bytes_per_target(
    text: Stream | Sequence[Document], *, batch: int, length: int, count: int
) -> float:
    """How many bytes of text a target of `held_out_batches` stands for, on average over them all.

    It turns nats a token into bits a byte exactly, for just the batches of an evaluation.
    """
    table, size, targets = as_stream(text).token_bytes, 0, 0
    for held_out in held_out_batches(text, batch=batch, length=length, count=count):
        size += int(table[held_out["targets"][held_out["mask"]]].sum(dtype=np.int64))
        targets += int(held_out["mask"].sum())
    return size / max(targets, 1)


def _batches(
    windows: grain.MapDataset[Batch], batch: int, rows: Rows | None
) -> grain.MapDataset[Batch]:
    """`rows` of each `batch` windows in turn; all of them for None."""
    chosen = range(batch) if rows is None else [int(row) for row in rows]
    if not all(0 <= row < batch for row in chosen):
        raise ValueError(f"rows {list(chosen)} are not all rows of a batch of {batch}")

    def stack(number: int) -> Batch:
        parts = [cast(Batch, windows[number * batch + row]) for row in chosen]
        return cast(Batch, {name: np.stack([part[name] for part in parts]) for name in parts[0]})

    return grain.MapDataset.range(len(windows) // batch).map(stack)

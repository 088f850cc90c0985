"""Batches for the loop, read a step ahead, and what happens when one cannot be read.

While step s runs, the batch of step s + 2 is read. When that fails, one is still in hand: of
several processes this one can take the step that the others take too, before all of them stop and
save at the same boundary, as at SIGTERM. Only then is the failure raised; no step is lost.
"""

from __future__ import annotations

import collections

import grain

from nvfp4_jax.training.data import Batch
from nvfp4_jax.training.errors import StorageError, UsageError

AHEAD = 2  # batches: the next, and the one after it


class Feed:
    """The batches of a run from where the data stands, in order.

    Attributes:
      position: where the data stands after the last batch taken.
      failure: why no more can be read, once that is so.
    """

    def __init__(self, data: grain.DatasetIterator[Batch], steps: int) -> None:
        """Read the first ones; `steps` are left to take."""
        self._data, self._left = data, steps
        self._read: collections.deque[tuple[Batch, dict]] = collections.deque()
        self.position: dict = data.get_state()
        self.failure: UsageError | StorageError | None = None
        self.read_ahead()

    def take(self) -> Batch | None:
        """The next batch; None when it could not be read."""
        if not self._read:
            return None
        batch, self.position = self._read.popleft()
        self._left -= 1
        return batch

    def read_ahead(self) -> None:
        """Read until enough are in hand, or until one cannot be read."""
        try:
            while self.failure is None and len(self._read) < min(AHEAD, self._left):
                self._read.append((next(self._data), self._data.get_state()))
        except (UsageError, StorageError) as error:
            self.failure = error

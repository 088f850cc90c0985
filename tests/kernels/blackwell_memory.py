"""Memory and barriers of `blackwell_machine`: what a thread of one CTA of a cluster sees."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import numpy as np

HERE = threading.local()  # cta, warpgroup, warp and phases of the thread that runs


class Shared:
    """Memory of each CTA of a cluster: the same view of every CTA's array."""

    def __init__(self, arrays):
        self.arrays = arrays

    @property
    def at(self):
        return At(lambda key: Shared([array[key] for array in self.arrays]))

    @property
    def local(self):
        return self.arrays[HERE.cta]

    @property
    def shape(self):
        return self.arrays[0].shape

    def reshape(self, *shape):
        reshaped = [array.reshape(shape) for array in self.arrays]
        assert all(np.shares_memory(*pair) for pair in zip(reshaped, self.arrays, strict=True))
        return Shared(reshaped)

    def transpose(self, order):
        """How Pallas wants b, (k, n); here codes are multiplied row by row."""
        assert order == (1, 0)
        return self

    def __setitem__(self, key, value):
        self.local[key] = value


class Global:
    """Device memory, and a window that may reach over its edges."""

    def __init__(self, array, window=None, writes=None):
        self.array, self.dtype, self.writes = array, array.dtype, writes
        self.window = window or tuple(slice(0, size) for size in array.shape)

    @property
    def at(self):
        return At(lambda key: Global(self.array, self._filled(key), self.writes))

    def __getitem__(self, key):
        return self.array[key]

    def _filled(self, key):
        return (*key, *self.window[len(key) :])

    def _inside(self):
        axes = zip(self.window, self.array.shape, strict=True)
        clipped = [slice(w.start, min(w.stop, size)) for w, size in axes]
        target = tuple(slice(0, max(c.stop - c.start, 0)) for c in clipped)
        return tuple(clipped), target

    def read(self):
        """Zeros where the window lies outside."""
        result = np.zeros([w.stop - w.start for w in self.window], self.array.dtype)
        inside, target = self._inside()
        result[target] = self.array[inside]
        return result

    def write(self, values):
        """What lies outside is dropped; `writes` counts how often each element was written."""
        inside, source = self._inside()
        self.array[inside] = values[source]
        self.writes[inside] += 1


class At:
    def __init__(self, view):
        self.view = view

    def __getitem__(self, key):
        return self.view(key)


class Barrier:
    """One mbarrier in each CTA of a cluster."""

    def __init__(self, name: str, arrivals: int, ctas: int):
        self.name, self.arrivals = name, arrivals
        self.states = [SimpleNamespace(pending=arrivals, bytes=0, phase=0) for _ in range(ctas)]

    def update(self, cta: int, arrivals: int = 0, bytes: int = 0):
        state = self.states[cta]
        state.pending -= arrivals
        state.bytes += bytes
        assert state.pending >= 0, "more arrivals than the barrier expects"
        if state.pending == 0 and state.bytes == 0:
            state.phase += 1
            state.pending = self.arrivals

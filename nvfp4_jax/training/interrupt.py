"""Stopping on request: a signal is noted, and the loop ends at the next step's boundary.

Of several processes perhaps one only is told (Kubernetes evicts a pod), and all must end at the
same boundary. jax's preemption service sees to that: it takes SIGTERM on any of them, asks all
how far they are, and names the first boundary that none has passed. While nothing happens this
costs no communication. A process that cannot go on asks in the same way; it must be able to take
one more step, for the others may have begun it.
"""

from __future__ import annotations

import contextlib
import itertools
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

from jax.experimental import multihost_utils

from nvfp4_jax.training.distributed import several

NOTICED_WITHIN_SECONDS = 5  # by all processes: jax looks for a signal every second

_boundaries = itertools.count()  # passed by this process, over all runs: jax wants them to rise


@dataclass
class StopRequest:
    """Whether and by which signal the run was asked to stop, and whether this process asked."""

    signal: signal.Signals | None = None
    asked: bool = False

    def ask_all(self) -> None:
        """Have several processes stop at one boundary, the next or the one after it."""
        if several() and not self.asked:
            self.asked = True
            signal.raise_signal(signal.SIGTERM)  # which jax's service takes, and tells all
            time.sleep(NOTICED_WITHIN_SECONDS)

    def is_due(self) -> bool:
        """Whether to end at this boundary; to be asked once at each, on every process."""
        if not several():
            return self.signal is not None
        due = multihost_utils.reached_preemption_sync_point(next(_boundaries))
        if due and self.signal is None:
            self.signal = signal.SIGTERM
        return due


@contextlib.contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """While open, SIGTERM and the first Ctrl-C are noted; a second Ctrl-C interrupts as usual."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request  # only the main thread may handle signals
        return

    def note(number: int, _: object) -> None:
        request.signal = signal.Signals(number)
        signal.signal(number, before[signal.Signals(number)])
        if several():
            signal.raise_signal(signal.SIGTERM)  # which jax's service takes, and tells all

    noted = (signal.SIGINT,) if several() else (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.getsignal(number) for number in noted}
    for number in before:
        signal.signal(number, note)
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

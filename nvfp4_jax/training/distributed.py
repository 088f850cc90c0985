"""Several processes as one run: how they meet, what they agree on, how they end together.

Each process runs the same program on its own devices; jax joins them, under SLURM and MPI by what
these tell, elsewhere by an address at which the first of them listens. From then on they share
every array and every step. Only the first writes logs, pictures and progress.

What must not happen is that one waits for another that will not come:

| what happens                      | what ends the others                                        |
|-----------------------------------|-------------------------------------------------------------|
| a choice that cannot be honoured, | nothing is begun before all have told what they are about   |
| or is not the same everywhere     | to do (`agreed`); all end with the same message             |
| an error in one process later on  | it leaves at once, without the orderly end, which would     |
|                                   | wait for the others; they miss it                           |
| a lost process or host            | jax's heartbeats; `last_words` tells it in one message      |
| SIGTERM to one of them            | `interrupt`: all end at the same boundary                   |
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np
from jax.experimental import multihost_utils

from nvfp4_jax.training.errors import Diverged, StorageError, UsageError, outcome
from nvfp4_jax.training.last_words import read_by_another
from nvfp4_jax.training.tuning import keep_trials_apart

HEARTBEAT_SECONDS = 30  # without a sign of life for so long, a process counts as lost
JOIN_SECONDS = 300  # for all to start: queues and images of a cluster are slow
END_SECONDS = 3600  # at the end, while the first writes parameters and pictures
SAME_ERROR_SECONDS = 3  # for those that fail alike to say so, before the first closes the meeting
LONGEST = 16384  # bytes a process tells at a meeting
LONGEST_ERROR = 3000  # characters of it

_STARTERS = {"slurm": "srun", "mpi": "mpirun"}
_NUMBERS = {
    "slurm": ("SLURM_PROCID", "SLURM_NTASKS"),
    "mpi": ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
}


def check_flags(distributed: str | None, processes: int | None, process: int | None) -> None:
    """Raise a `UsageError` for flags that do not say together how processes meet."""
    given = {"--processes": processes, "--process": process}
    by_address = distributed is not None and distributed not in _STARTERS
    _check_started(distributed)
    for flag, value in given.items():
        if value is not None and not by_address:
            raise UsageError(
                f"{flag} {value} goes with --distributed HOST:PORT; "
                f"{'slurm and mpi know it' if distributed else 'add that'}, or leave it out"
            )
    if not by_address:
        return
    if not re.fullmatch(r"\S+:\d+", str(distributed)):
        raise UsageError(f"--distributed {distributed}: give slurm, mpi or HOST:PORT")
    if processes is None or process is None:
        raise UsageError(
            f"--distributed {distributed} needs --processes N and --process I, the number of this "
            "one from 0; process 0 runs on HOST"
        )
    if not 0 <= process < processes:
        raise UsageError(f"--process {process}: give 0 to {processes - 1} with {processes}")


def _check_started(distributed: str | None) -> None:
    """SLURM and MPI number the processes that they start; mpi4py asks an MPI that does not."""
    if distributed not in _STARTERS:
        return
    number, starter = _NUMBERS[distributed][0], _STARTERS[distributed]
    asked = distributed == "mpi" and importlib.util.find_spec("mpi4py") is not None
    if number not in os.environ and not asked:
        raise UsageError(
            f"--distributed {distributed}: {number} is not set, so {starter} did not start this "
            f"process; start it by {starter}, or give HOST:PORT"
        )


@contextlib.contextmanager
def joined(distributed: str | None, processes: int | None, process: int | None) -> Iterator[None]:
    """While open, this process is one of several; alone for None. Before anything is computed.

    Args:
      distributed: `slurm`, `mpi`, or HOST:PORT, which is where process 0 listens.
      processes: with HOST:PORT, how many there are.
      process: with HOST:PORT, the number of this one.

    Raises:
      UsageError: the flags do not fit together, or SLURM or MPI did not start this process.
    """
    check_flags(distributed, processes, process)
    if distributed is None:
        yield
        return
    with read_by_another(_name(distributed, processes, process), distributed):
        _initialize(distributed, processes, process)
        with leaving_on_error():
            yield
        jax.distributed.shutdown()  # waits for all: the first may still be writing


def _initialize(distributed: str, processes: int | None, process: int | None) -> None:
    keep_trials_apart()
    try:
        jax.distributed.initialize(
            None if distributed in _STARTERS else distributed,
            processes,
            process,
            cluster_detection_method=_method(distributed),
            initialization_timeout=JOIN_SECONDS,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=END_SECONDS,
        )
    except RuntimeError as error:
        if "mpi4py" not in str(error):  # which Open MPI has needed since its version 5
            raise
        raise UsageError(f"--distributed {distributed}: {error} Install mpi4py") from None


def _name(distributed: str, processes: int | None, process: int | None) -> str:
    """How messages call this process, before jax knows its number."""
    number, count = process, processes
    if distributed in _STARTERS:
        number, count = (os.environ.get(name) for name in _NUMBERS[distributed])
    return "nvfp4" if number is None else f"nvfp4: process {number} of {count}"


def _method(distributed: str) -> str:
    """jax's name for how to find the others; MPIs other than Open MPI are asked through mpi4py."""
    if distributed == "mpi":
        return "ompi" if "OMPI_COMM_WORLD_RANK" in os.environ else "mpi4py"
    return distributed if distributed in _STARTERS else "deactivate"


def several() -> bool:
    """Whether this run is of more than one process."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def is_first() -> bool:
    """Whether this is the process that writes and shows; true of one that is alone."""
    return not several() or jax.process_index() == 0


def gather(told: dict) -> list[dict]:
    """What each process tells (JSON of at most `LONGEST` bytes), on all; called by all."""
    text = json.dumps(told, ensure_ascii=False).encode()
    assert len(text) <= LONGEST
    padded = np.frombuffer(text.ljust(LONGEST), np.uint8)
    return [json.loads(bytes(row)) for row in multihost_utils.process_allgather(padded)]


def agreed[T](make: Callable[[], T], facts: Callable[[T], dict[str, str]] = lambda _: {}) -> T:
    """What `make` gives, once it has been done on every process and with the same facts.

    Args:
      make: what each process does by itself.
      facts: what must be the same everywhere; name -> what it is, in a few words.

    Raises:
      UsageError: on every process, if it is raised on one, or if a fact differs.
      StorageError: on every process, if a disk or folder failed one.
    """
    if not several():
        return make()
    try:
        made = make()
        told = {"facts": {name: fact[:100] for name, fact in facts(made).items()}}
    except Exception as error:
        known = outcome(error)
        if known is None:
            raise
        _refuse_unequal(gather({"status": known[1], "error": str(error)[:LONGEST_ERROR]}))
        raise
    _refuse_unequal(gather(told))
    return made


def from_first(ask: Callable[[], bool]) -> bool:
    """The first process's answer, on all; the others are not asked."""
    if not several():
        return ask()
    return gather({"answer": ask() if is_first() else None})[0]["answer"]


def first_alone[T](make: Callable[[], T]) -> T:
    """What `make` gives; the first process makes its own before the others begin theirs.

    Raises:
      UsageError, StorageError: on every process, if it is raised by the first.
    """
    made = agreed(lambda: make() if is_first() else None)
    return make() if made is None else made


def _refuse_unequal(told: Sequence[dict]) -> None:
    for process, one in enumerate(told):
        if "error" in one:
            kind = UsageError if one["status"] == 2 else StorageError
            raise kind(f"process {process} says: {one['error']}")
    first = told[0]["facts"]
    for process, one in enumerate(told):
        for name in first | one["facts"]:
            here, there = first.get(name), one["facts"].get(name)
            if here != there:
                raise UsageError(
                    f"the processes are not about to do the same: {name} is {here} on process 0 "
                    f"and {there} on process {process}; give all of them the same command, "
                    "files and versions"
                )


@contextlib.contextmanager
def leaving_on_error() -> Iterator[None]:
    """Among several processes, an error ends this one here, with its message and status.

    Unwinding would close what all must close together, and wait for the others, which wait for
    this one in the middle of a step.
    """
    try:
        yield
    except BaseException as error:
        if not several():
            raise
        _leave(error)


def _leave(error: BaseException) -> None:
    if _is_of_a_connection(error):
        time.sleep(HEARTBEAT_SECONDS + 10)  # jax tells whom it misses, and ends this process
    known = outcome(error)
    if known is None:
        traceback.print_exception(error)
        known = f"{type(error).__name__}, see above", 1
    message, status = known
    print(
        f"nvfp4: process {jax.process_index()} of {jax.process_count()}: {message}",
        file=sys.stderr,
    )
    if jax.process_index() == 0:
        time.sleep(SAME_ERROR_SECONDS)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _is_of_a_connection(error: BaseException | None) -> bool:
    """Whether an error, or what led to it, is that another process could not be reached."""
    if error is None or isinstance(error, UsageError | Diverged):
        return False
    words = r"gloo|nccl|coordination|connection (reset|closed|refused)|barrier|heartbeat"
    found = re.search(words, str(error), re.IGNORECASE)
    return bool(found) or _is_of_a_connection(error.__cause__ or error.__context__)

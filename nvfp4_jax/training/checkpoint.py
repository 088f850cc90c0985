"""Checkpoints: what a run needs to go on as if nothing had happened.

    WORKDIR/checkpoints/STEP     parameters by path, both moments, counters; and beside them, as
                                 JSON, the position in the data and what run this is: seed, model,
                                 training choices, corpus fingerprint and the recipe's text; and
                                 SHA256SUMS, the digest of every file of it

Orbax writes in the background, each process its own shards. When all are done, process 0 adds the
digests and renames the folder to its step: a checkpoint is whole and sealed, or absent, at
whatever moment a process is killed. What changed later, by a failing disk or hand, does not agree
with its digests; it is named and set aside, and the one before it is used.

Parameters are keyed by their path and know nothing of recipes or meshes: `load` lays them out as
it is told, on any number of devices.
"""

from __future__ import annotations

import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, cast

import jax
import orbax.checkpoint.experimental.v1 as ocp

from nvfp4_jax.training.errors import StorageError, reason
from nvfp4_jax.training.files import storing
from nvfp4_jax.training.integrity import seal
from nvfp4_jax.training.retention import Aged, steps_to_delete
from nvfp4_jax.training.state import TrainState

WRITING, DELETING = ".writing", ".deleting"


@dataclass(frozen=True)
class Found:
    """A checkpoint on disk.

    Attributes:
      path: its folder.
      step: steps done.
      run: what run wrote it, as `save` was told.
      position: the data iterator's state.
    """

    path: Path
    step: int
    run: dict[str, Any]
    position: dict[str, Any]


class Checkpoints:
    """Where a run saves; use as a context manager, on every process.

    Args:
      folder: made if it is missing; cleared of what a killed process left half done.
      keep: how many of the newest are kept.
      keep_every: which others are (`retention`).
    """

    def __init__(self, folder: Path, keep: int, keep_every: str | None = None) -> None:
        self._folder, self._keep, self._keep_every = folder, keep, keep_every
        self._background = ThreadPoolExecutor(1, "checkpoint")
        self._pending: Future[None] | None = None
        self._kept: dict[int, Aged] = {}
        if jax.process_index() == 0:
            with storing(folder):
                folder.mkdir(exist_ok=True)
                _clear(folder)
                self._kept = {step: _age(folder / str(step)) for step in steps(folder)}
                self._make_room()  # a lower `keep` is how a person makes room on a full disk

    def save(
        self, state: TrainState, step: int, *, run: dict[str, Any], position: dict[str, Any]
    ) -> None:
        """Begin to save, once the save before is done; returns when the arrays are copied.

        Raises:
          StorageError: the save before failed, or this one has nowhere to go.
        """
        self.wait()
        path = (self._folder / f"{step}{WRITING}").absolute()
        about: Any = {"run": run, "position": position}
        try:
            with _folders_first():
                response = ocp.save_async(str(path), cast(Any, state), custom_metadata=about)
        except OSError as error:
            raise self._failed(step, error) from error
        self._pending = self._background.submit(self._finish, response, path, step)

    def check(self) -> None:
        """Raise the `StorageError` of a save in the background that has failed; do not wait."""
        if self._pending is not None and self._pending.done():
            self.wait()

    def wait(self) -> None:
        """Return when the last save is done, or raise the `StorageError` it failed by."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def _finish(self, response: Any, path: Path, step: int) -> None:
        """In the background: wait for all processes' arrays, then seal, name and make room."""
        try:
            response.result()
            if jax.process_index() == 0:
                seal(path)
                path.rename(path.with_name(str(step)))
                # Nothing is being written now. A save that failed may have left tasks of Orbax
                # behind, which wrote on after its folder had been removed.
                _clear(self._folder)
                self._kept[step] = Aged(step, datetime.now(UTC))
                self._make_room()
        except Exception as error:  # tensorstore raises what it likes for a full disk
            raise self._failed(step, error) from error

    def _make_room(self) -> None:
        """Delete what no policy keeps; renamed first, so that a half is never taken for whole."""
        for step in steps_to_delete(list(self._kept.values()), self._keep, self._keep_every):
            path = self._folder / str(step)
            aside = path.rename(path.with_name(f"{step}{DELETING}"))
            # A network file system may hold on to a file; the next start clears what is left.
            shutil.rmtree(aside, ignore_errors=True)
            del self._kept[step]

    def _failed(self, step: int, error: Exception) -> StorageError:
        """Remove what there is of a save; gives back the error that tells of it."""
        if jax.process_index() == 0:
            _clear(self._folder)
        kept = next(iter(steps(self._folder)), None)
        last = f"the last whole one is of step {kept}" if kept else "there is none before it"
        path = self._folder / str(step)
        return StorageError(f"{path}: cannot save the checkpoint: {reason(error)}; {last}")

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._background.shutdown()  # waits
        if kind is None:  # what is being raised already matters more
            self.wait()


def steps(folder: Path) -> list[int]:
    """The steps of a folder's checkpoints, the newest first."""
    names = (path.name for path in folder.glob("*") if path.is_dir())
    return sorted((int(name) for name in names if name.isdigit()), reverse=True)


def describe(path: Path) -> Found:
    """What a checkpoint says of itself."""
    about: Any = ocp.checkpointables_metadata(str(path.absolute())).custom_metadata
    return Found(path, int(path.name), about["run"], about["position"])


def load(found: Found, abstract: TrainState) -> TrainState:
    """The state of a checkpoint, laid out as `abstract` (shapes, dtypes, shardings) says."""
    return ocp.load(str(found.path.absolute()), cast(Any, abstract))


def _folders_first() -> ocp.Context:
    """Among one process, make a checkpoint's folders before anything waits for them.

    Where they cannot be made in the background, threads of Orbax wait for them all the same, and
    hold up the end of the process, for five minutes. Several processes do not wait for threads
    (`distributed.leaving_on_error`), and would have to meet while they train.
    """
    context = ocp.Context()
    context.asynchronous.create_directories_asynchronously = jax.process_count() > 1
    return context


def _age(path: Path) -> Aged:
    """When it was written; one that is damaged, which `recovery` will notice, counts as old."""
    try:
        written = ocp.checkpointables_metadata(str(path.absolute())).commit_timestamp_nsecs or 0
    except Exception:  # whatever a torn file makes a reader say
        written = 0
    return Aged(int(path.name), datetime.fromtimestamp(written / 1e9, UTC))


def _clear(folder: Path) -> None:
    """Remove what was being written or deleted."""
    for path in (*folder.glob(f"*{WRITING}*"), *folder.glob(f"*{DELETING}")):
        shutil.rmtree(path, ignore_errors=True)

"""Checkpoints: what a run needs to go on as if nothing had happened.

    WORKDIR/checkpoints/STEP     parameters by path, both moments, counters; and beside them, as
                                 JSON, the position in the data and what run this is: seed, model,
                                 training choices, corpus fingerprint and the recipe's text

Orbax writes in the background to a temporary folder and renames it, so a checkpoint is whole or
absent. Parameters are keyed by their path and know nothing of recipes. A checkpoint that cannot
be read all the same (a full or failing disk) is set aside, and the one before it is used.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import jax
import orbax.checkpoint.experimental.v1 as ocp

from nvfp4_jax.training.state import TrainState


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


def open_checkpoints(folder: Path, keep: int) -> ocp.training.Checkpointer:
    """Where to save: keeps the newest `keep`, and clears what a crash left half written."""
    return ocp.training.Checkpointer(
        str(folder.absolute()),
        # the loop decides when; orbax's policies have another type than its own protocol asks for
        save_decision_policy=cast(Any, ocp.training.save_decision_policies.FixedIntervalPolicy(1)),
        preservation_policy=cast(Any, ocp.training.preservation_policies.LatestN(keep)),
        cleanup_tmp_directories=True,
    )


def save(
    checkpointer: ocp.training.Checkpointer,
    state: TrainState,
    step: int,
    *,
    run: dict[str, Any],
    position: dict[str, Any],
) -> None:
    """Begin to save; returns once the arrays are copied, and writes them in the background."""
    about: Any = {"run": run, "position": position}
    checkpointer.save_async(step, state, force=True, custom_metadata=about)


def find(folder: Path) -> Iterator[Found]:
    """The checkpoints of a folder, the newest first; unreadable ones are set aside."""
    for path in sorted(_steps(folder), key=lambda path: -int(path.name)):
        try:
            about: Any = ocp.checkpointables_metadata(str(path.absolute())).custom_metadata
            found = Found(path, int(path.name), about["run"], about["position"])
        except Exception:  # whatever a torn file makes a reader say
            set_aside(path)
            continue
        yield found


def load(found: Found, abstract: TrainState) -> TrainState:
    """The state of a checkpoint, laid out as `abstract` (shapes, dtypes, shardings) says."""
    return ocp.load(str(found.path.absolute()), cast(Any, abstract))


def set_aside(path: Path) -> Path:
    """Move a checkpoint that cannot be read to `checkpoints-unreadable`, out of everyone's way."""
    aside = path.parent.with_name("checkpoints-unreadable") / path.name
    aside.parent.mkdir(exist_ok=True)
    shutil.rmtree(aside, ignore_errors=True)
    return path.rename(aside)


def abstract_state(state: Any, sharding: jax.sharding.Sharding) -> Any:
    """Shapes and dtypes of a state (arrays or their shapes) with the layout to load them in."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), state
    )


def _steps(folder: Path) -> list[Path]:
    return [path for path in folder.glob("*") if path.name.isdigit() and path.is_dir()]

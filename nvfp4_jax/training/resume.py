"""Where a run begins: afresh, or where a checkpoint of the same run left off.

"The same" is judged by what the checkpoint carries, not by trust: model, training choices, corpus
and recipe. What has changed is named. A recipe may be changed on purpose (`--force-recipe`), as
when a run is to end in another precision; the rest would make the continued run neither the old
one nor the new one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp

from nvfp4_jax.training import checkpoint
from nvfp4_jax.training.corpus import describe_change
from nvfp4_jax.training.errors import UsageError
from nvfp4_jax.training.prepare import Run
from nvfp4_jax.training.recovery import newest
from nvfp4_jax.training.sharding import placed_shapes, state_shardings
from nvfp4_jax.training.state import TrainState, initial_state
from nvfp4_jax.training.workdir import METRICS

Start = tuple[TrainState, dict | None]


def begin(run: Run, say: Callable[[str], None]) -> Start:
    """(state, data position) to begin with: restored, or fresh with position None.

    Raises:
      UsageError: the workdir holds another run (the message says what differs), or checkpoints of
        which none is whole.
    """

    def initial() -> TrainState:
        return initial_state(run.program.config, run.optimizer, run.config.seed)

    shapes = jax.eval_shape(initial)
    layouts = state_shardings(run.mesh, shapes)
    abstract = placed_shapes(shapes, layouts)
    found = newest(run.config.workdir / "checkpoints", say)
    if found is not None:
        check_same_run(run, found.run)
        state = checkpoint.load(found, abstract)
        say(f"continuing from step {found.step}")
        return state, found.position
    log = run.config.workdir / METRICS
    if log.exists() and log.stat().st_size:
        say(f"beginning again: of the steps in {METRICS} there is no checkpoint")
    return jax.jit(initial, out_shardings=layouts)(), None


def check_same_run(run: Run, before: dict) -> None:
    """Raise a `UsageError` that names what differs from the run a checkpoint was written by."""
    now = run.describe()
    _check_choices("model", before["model"], now["model"], run.config.workdir)
    _check_choices("training", before["training"], now["training"], run.config.workdir)
    if before["corpus"]["fingerprint"] != now["corpus"]["fingerprint"]:
        raise UsageError(
            f"--workdir {run.config.workdir}: the text has changed since the run began: "
            f"{_corpus_change(run, before['corpus'])}; restore it or start another --workdir"
        )
    if before["recipe"]["digest"] != now["recipe"]["digest"] and not run.config.force_recipe:
        raise UsageError(
            f"--workdir {run.config.workdir} was trained with another recipe: "
            f"{_recipe_change(before['recipe'], now['recipe'])}; give that recipe again, start "
            "another --workdir, or continue with the new one by --force-recipe"
        )


def _check_choices(what: str, before: dict, now: dict, workdir: Path) -> None:
    changed = [name for name in now if before.get(name) != now[name]]
    if changed:
        words = ", ".join(f"{name} was {before.get(name)!r}, is {now[name]!r}" for name in changed)
        raise UsageError(
            f"--workdir {workdir} holds a run with another {what}: {words}; give the former "
            "value or start another --workdir"
        )


def _recipe_change(before: dict, now: dict) -> str:
    if before["name"] != now["name"]:
        return f"{before['name']!r}, not {now['name']!r}"
    old, new = before["text"].splitlines(), now["text"].splitlines()
    new += [""] * (len(old) - len(new))
    line = next((i for i, text in enumerate(new) if i >= len(old) or old[i] != text), 0)
    was = old[line] if line < len(old) else ""
    return f"{now['name']!r}, line {line + 1} was {was.strip()!r}, is {new[line].strip()!r}"


def _corpus_change(run: Run, before: dict) -> str:
    if before["name"] != run.corpus.name:
        return f"it was {before['name']}, and is {run.corpus.name}"
    listing = run.config.workdir / "corpus.json"
    if not listing.exists():
        return f"{run.corpus.name} has other files or contents"
    return describe_change(json.loads(listing.read_text()), run.corpus.digests)


def parameter_count(state: TrainState) -> int:
    """How many numbers the model has."""
    return sum(math.prod(jnp.shape(array)) for array in state.parameters.values())

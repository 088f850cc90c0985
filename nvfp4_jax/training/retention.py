"""Which checkpoints are kept.

    --keep 2                    the newest two: one to continue from, and one before it in case
    --keep-every 1000           and every thousandth step, for good
    --keep-every 6h             or, whenever six hours have passed since the last that is kept so

Orbax's preservation policies decide; a checkpoint that any of them keeps, stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import orbax.checkpoint.experimental.v1 as ocp

from nvfp4_jax.training.config import keep_every_interval

policies = ocp.training.preservation_policies
SECONDS_AN_HOUR = 3600


@dataclass
class Aged:
    """A checkpoint as policies see it.

    Attributes:
      step: steps done.
      time: when it was written.
      metrics: none: checkpoints are not kept by how good they are.
    """

    step: int
    time: datetime
    metrics: Any = None


def steps_to_delete(checkpoints: Sequence[Aged], keep: int, keep_every: str | None) -> list[int]:
    """The steps of the checkpoints that no policy keeps."""
    chosen: list[Any] = [policies.LatestN(keep)]
    if keep_every is not None:
        chosen.append(_policy(keep_every))
    by_step = sorted(checkpoints, key=lambda checkpoint: checkpoint.step)
    kept = policies.AnyPreservationPolicy(chosen).should_preserve(
        by_step, context=policies.PreservationContext()
    )
    return [checkpoint.step for checkpoint, stays in zip(by_step, kept, strict=True) if not stays]


def _policy(keep_every: str) -> policies.EveryNSteps | policies.EveryNSeconds:
    count, unit = keep_every_interval(keep_every)
    if unit == "steps":
        return policies.EveryNSteps(round(count))
    return policies.EveryNSeconds(round(count * SECONDS_AN_HOUR))

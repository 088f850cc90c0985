"""The time of a whole training step under a recipe, beside that of the same step in BF16.

Loss, gradients, clipping and AdamW, as `nvfp4 train` runs them, on random tokens. A ratio to a
slow step proves nothing, so the BF16 step is held against the GPU's peak as well (MFU, see
`flops`). The variants run in turns in one process: a GPU's clock wanders by several percent.

All variants hand one training state from step to step, given up by each and returned by it, so
that the memory of several is that of the largest.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax

from nvfp4_jax.training.errors import UsageError
from nvfp4_jax.training.flops import peak_flops, step_flops
from nvfp4_jax.training.lone_step import (
    LoneStep,
    compile_step,
    first_state,
    random_batch,
    run_key,
)
from nvfp4_jax.training.model_choice import choose_model

BASELINE = "bf16"


@dataclass(frozen=True)
class StepFigures:
    """What one variant of the step costs.

    Attributes:
      recipe: its name.
      seconds: median of a step.
      ratio: seconds to those of BF16.
      tokens_per_second: of the batch.
      model_flops: of a step, by Megatron's formula.
      mfu: model_flops a second to the devices' dense bf16 peak; None where that is not known.
      compile_seconds: to trace and compile, once.
      planned_bytes: arguments and temporaries of a device, as the compiler planned them.
      device_peak_bytes: the largest peak of a device so far, which only rises; None where it is not
        told.
    """

    recipe: str
    seconds: float
    ratio: float
    tokens_per_second: float
    model_flops: float
    mfu: float | None
    compile_seconds: float
    planned_bytes: int
    device_peak_bytes: int | None


class _Compiled(NamedTuple):
    run: Callable[..., Any]
    seconds: float
    planned_bytes: int


def bench_step(
    model: str,
    recipes: tuple[str, ...],
    *,
    batch: int,
    length: int,
    rounds: int = 10,
    documents: int = 2,
    remat: Literal["none", "block", "linear_inputs"] = "none",
    scan: Literal["auto", "on", "off"] = "auto",
    mesh: str | None = None,
    say: Callable[[str], None] = print,
) -> list[StepFigures]:
    """Time the training step in BF16 and under every recipe, in turns.

    Args:
      model: a preset or a JSON file with the fields of a HybridConfig.
      recipes: names or TOML files; `bf16` is measured in any case, and first.
      batch: rows a step, of all devices together.
      length: tokens a row.
      rounds: steps timed of each variant, after two that are not.
      documents: packed into a row, of equal length.
      remat, scan, mesh: as in training.
      say: told what is being done.

    Raises:
      UsageError: a number below 1, a model that does not exist, or a mesh that cannot be.
      RecipeError: a recipe that cannot be read or does not fit the model.
    """
    step = LoneStep(
        model=model,
        recipe=BASELINE,
        batch=batch,
        length=length,
        documents=documents,
        remat=remat,
        scan=scan,
        mesh=mesh,
    )
    step.check()
    if rounds < 1:
        raise UsageError(f"--rounds {rounds}: give a whole number of at least 1")
    compiled = {}
    for recipe in dict.fromkeys((BASELINE, *recipes)):
        say(f"step {model}, {batch} x {length}: compiling {recipe}")
        compiled[recipe] = _compile(dataclasses.replace(step, recipe=recipe))
    say(f"step {model}: {rounds} rounds")
    seconds, peaks = _in_turns(compiled, step, rounds)
    return _figures(compiled, seconds, peaks, step)


def risen(figures: list[StepFigures]) -> dict[str, int]:
    """The device's peaks that are the step's own: those above every smaller step's."""
    peaks: dict[str, int] = {}
    for one in sorted(figures, key=lambda one: one.planned_bytes):
        if one.device_peak_bytes and one.device_peak_bytes > max(peaks.values(), default=0):
            peaks[one.recipe] = one.device_peak_bytes
    return peaks


def planned_bytes(compiled: jax.stages.Compiled) -> int:
    """Arguments, what is returned beside them, and temporaries, of each device."""
    told = compiled.memory_analysis()
    assert told is not None  # CPUs and GPUs tell
    arguments = told.argument_size_in_bytes + told.output_size_in_bytes - told.alias_size_in_bytes
    return arguments + told.temp_size_in_bytes


def device_peak() -> int | None:
    """The highest peak so far among the devices here; None where they do not tell."""
    told = [
        (device.memory_stats() or {}).get("peak_bytes_in_use") for device in jax.local_devices()
    ]
    return max((peak for peak in told if peak is not None), default=None)


def _compile(step: LoneStep) -> _Compiled:
    start = time.perf_counter()
    run = compile_step(step)
    return _Compiled(run, time.perf_counter() - start, planned_bytes(run))


def _in_turns(
    compiled: dict[str, _Compiled], step: LoneStep, rounds: int
) -> tuple[dict[str, list[float]], dict[str, int | None]]:
    """Seconds of every step timed, and the device's peak after the first two of each variant."""
    state, batch, key = first_state(step), random_batch(step), run_key(step)
    peaks: dict[str, int | None] = {}
    for name in sorted(compiled, key=lambda name: compiled[name].planned_bytes):
        for _ in range(2):
            state, _ = jax.block_until_ready(compiled[name].run(state, batch, key))
        peaks[name] = device_peak()
    seconds: dict[str, list[float]] = {name: [] for name in compiled}
    for _ in range(rounds):
        for name, variant in compiled.items():
            start = time.perf_counter()
            state, _ = jax.block_until_ready(variant.run(state, batch, key))
            seconds[name].append(time.perf_counter() - start)
    return seconds, peaks


def _figures(
    compiled: dict[str, _Compiled],
    seconds: dict[str, list[float]],
    peaks: dict[str, int | None],
    step: LoneStep,
) -> list[StepFigures]:
    tokens, mesh = step.batch * step.length, step.check()
    flops = sum(step_flops(choose_model(step.model), tokens, step.length).values())
    peak = peak_flops(mesh.devices.flat[0].device_kind)
    medians = {name: statistics.median(taken) for name, taken in seconds.items()}
    return [
        StepFigures(
            recipe=name,
            seconds=median,
            ratio=median / medians[BASELINE],
            tokens_per_second=tokens / median,
            model_flops=flops,
            mfu=flops / median / (mesh.size * peak) if peak else None,
            compile_seconds=compiled[name].seconds,
            planned_bytes=compiled[name].planned_bytes,
            device_peak_bytes=peaks[name],
        )
        for name, median in medians.items()
    ]

"""The time of a whole training step under a recipe, beside that of the same step in BF16.

Loss, gradients, clipping and AdamW, as `nvfp4 train` runs them, on random tokens. A ratio to a
slow step proves nothing, so the BF16 step is held against the GPU's peak as well (MFU, see
`flops`). The variants run in turns in one process: a GPU's clock wanders by several percent.

All variants hand one training state from step to step, given up by each and returned by it, so
that the memory of several is that of the largest.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from nvfp4_jax import models
from nvfp4_jax.recipe import load_recipe
from nvfp4_jax.training.binding import precision_table
from nvfp4_jax.training.errors import UsageError
from nvfp4_jax.training.flops import peak_flops, step_flops
from nvfp4_jax.training.model_choice import choose_model
from nvfp4_jax.training.optimizer import adamw, learning_rate_schedule
from nvfp4_jax.training.prepare import SCAN_FROM_BLOCKS
from nvfp4_jax.training.state import abstract_model, initial_state
from nvfp4_jax.training.step import Arrays, Program, make_step

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
      mfu: model_flops a second to the device's dense bf16 peak; None where that is not known.
      compile_seconds: to trace and compile, once.
      planned_bytes: arguments and temporaries, as the compiler planned them.
      device_peak_bytes: the device's peak so far, which only rises; None where it does not tell.
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
    say: Callable[[str], None] = print,
) -> list[StepFigures]:
    """Time the training step in BF16 and under every recipe, in turns.

    Args:
      model: a preset or a JSON file with the fields of a HybridConfig.
      recipes: names or TOML files; `bf16` is measured in any case, and first.
      batch: rows a step.
      length: tokens a row.
      rounds: steps timed of each variant, after two that are not.
      documents: packed into a row, of equal length.
      remat, scan: as in training.
      say: told what is being done.

    Raises:
      UsageError: a number below 1, or a model that does not exist.
      RecipeError: a recipe that cannot be read or does not fit the model.
    """
    for name, value in {"batch": batch, "length": length, "rounds": rounds}.items():
        if value < 1:
            raise UsageError(f"--{name} {value}: give a whole number of at least 1")
    config = choose_model(model)
    rows, key = random_batch(batch, length, config.vocabulary, documents), jax.random.key(0)
    compiled = {}
    for recipe in dict.fromkeys((BASELINE, *recipes)):
        say(f"step {model}, {batch} x {length}: compiling {recipe}")
        compiled[recipe] = _compile(config, recipe, rows, key, remat, scan)
    say(f"step {model}: {rounds} rounds")
    seconds, peaks = _in_turns(compiled, config, rows, key, rounds)
    return _figures(config, compiled, seconds, peaks, batch * length, length)


def risen(figures: list[StepFigures]) -> dict[str, int]:
    """The device's peaks that are the step's own: those above every smaller step's."""
    peaks: dict[str, int] = {}
    for one in sorted(figures, key=lambda one: one.planned_bytes):
        if one.device_peak_bytes and one.device_peak_bytes > max(peaks.values(), default=0):
            peaks[one.recipe] = one.device_peak_bytes
    return peaks


def random_batch(rows: int, length: int, vocabulary: int, documents: int) -> Arrays:
    """One microbatch of random tokens, every row cut into documents of equal length."""
    shape = (1, rows, length)
    tokens = jax.random.randint(jax.random.key(1), shape, 0, vocabulary)
    segments = jnp.broadcast_to(jnp.arange(length) * documents // length + 1, shape)
    mask = jnp.ones(shape, bool)
    return {"tokens": tokens, "targets": tokens, "segment_ids": segments, "mask": mask}


def _compile(
    config: models.HybridConfig,
    recipe: str,
    batch: Arrays,
    key: jax.Array,
    remat: Literal["none", "block", "linear_inputs"],
    scan: Literal["auto", "on", "off"],
) -> _Compiled:
    model, optimizer = abstract_model(config), adamw()
    table = precision_table(load_recipe(recipe), model, config.num_blocks)
    looped = scan == "on" or (scan == "auto" and config.num_blocks >= SCAN_FROM_BLOCKS)
    program = Program(config, nnx.graphdef(model), remat=remat, scan=looped)
    step = make_step(program, table, optimizer, learning_rate_schedule(1e-3, 1000, 10, 0.2))
    state = jax.eval_shape(lambda: initial_state(config, optimizer, 0))
    start = time.perf_counter()
    run = jax.jit(step, donate_argnums=0).lower(state, batch, key).compile()
    taken = time.perf_counter() - start
    told = run.memory_analysis()
    assert told is not None  # CPUs and GPUs tell
    arguments = told.argument_size_in_bytes + told.output_size_in_bytes - told.alias_size_in_bytes
    return _Compiled(run, taken, arguments + told.temp_size_in_bytes)


def _in_turns(
    compiled: dict[str, _Compiled],
    config: models.HybridConfig,
    batch: Arrays,
    key: jax.Array,
    rounds: int,
) -> tuple[dict[str, list[float]], dict[str, int | None]]:
    """Seconds of every step timed, and the device's peak after the first two of each variant."""
    state = jax.jit(lambda: initial_state(config, adamw(), 0))()
    peaks: dict[str, int | None] = {}
    for name in sorted(compiled, key=lambda name: compiled[name].planned_bytes):
        for _ in range(2):
            state, _ = jax.block_until_ready(compiled[name].run(state, batch, key))
        peaks[name] = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    seconds: dict[str, list[float]] = {name: [] for name in compiled}
    for _ in range(rounds):
        for name, variant in compiled.items():
            start = time.perf_counter()
            state, _ = jax.block_until_ready(variant.run(state, batch, key))
            seconds[name].append(time.perf_counter() - start)
    return seconds, peaks


def _figures(
    config: models.HybridConfig,
    compiled: dict[str, _Compiled],
    seconds: dict[str, list[float]],
    peaks: dict[str, int | None],
    tokens: int,
    length: int,
) -> list[StepFigures]:
    flops = sum(step_flops(config, tokens, length).values())
    peak = peak_flops(jax.local_devices()[0].device_kind)
    medians = {name: statistics.median(taken) for name, taken in seconds.items()}
    return [
        StepFigures(
            recipe=name,
            seconds=median,
            ratio=median / medians[BASELINE],
            tokens_per_second=tokens / median,
            model_flops=flops,
            mfu=flops / median / peak if peak else None,
            compile_seconds=compiled[name].seconds,
            planned_bytes=compiled[name].planned_bytes,
            device_peak_bytes=peaks[name],
        )
        for name, median in medians.items()
    ]

"""Whole training steps, as ratios to BF16, and the share of the GPU's peak that they reach.

    MFU = model FLOPs / (seconds x peak FLOP/s)

Model FLOPs are Megatron's count (`nvfp4_jax.training.flops`), the same for every recipe; the peak
is the data sheet's for dense bf16. The steps take turns on one and the same state, since each
gives up the state it is given.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax

from nvfp4_jax.bench import program
from nvfp4_jax.bench.memory import BASELINE
from nvfp4_jax.bench.options import Step
from nvfp4_jax.bench.program import Workload, compiled_step
from nvfp4_jax.bench.report import Column, Row, Section
from nvfp4_jax.bench.spelling import at_least_one
from nvfp4_jax.bench.timing import Timing, interleaved
from nvfp4_jax.training.flops import peak_flops, step_flops

ON_A_GPU, ON_A_CPU = ("150m", "1b"), ("tiny",)
COLUMNS = (
    Column("model", "model"),
    Column("size", "rows x tokens"),
    Column("recipe", "recipe"),
    Column("milliseconds", "ms", ",.1f"),
    Column("ratio_to_bf16", "to bf16", ".3f"),
    Column("tokens_per_second", "tokens/s", ",.0f"),
    Column("teraflop_per_second", "model TFLOP/s", ",.1f"),
    Column("model_flops_utilization", "MFU", ".1%"),
    Column("compile_seconds", "compiled in, s", ".0f"),
)


def measure(options: Step, say: Callable[[str], None]) -> Section:
    """Time a step of every model in bf16 and in every recipe.

    Raises:
      UsageError: a model that does not exist, or a size below 1.
      RecipeError: a recipe that cannot be read or does not fit a model.
    """
    at_least_one("--batch", options.batch)
    at_least_one("--length", options.length)
    at_least_one("--documents", options.documents)
    on_cpu = jax.default_backend() == "cpu"
    models = options.models or (ON_A_CPU if on_cpu else ON_A_GPU)
    length = options.length or (256 if on_cpu else 4096)
    works = [
        Workload(model, options.batch, length, options.documents, options.remat) for model in models
    ]
    recipes = tuple(dict.fromkeys((BASELINE, *options.recipe)))
    for work in works:
        program.check(work, recipes)
    rows = [row for work in works for row in _rows(work, recipes, options, say)]
    facts = {"remat": options.remat, "peak_flop_per_second": _peak()}
    return Section("step", "Training steps, as ratios to bf16", COLUMNS, rows, facts)


def _rows(work: Workload, recipes: tuple[str, ...], options: Step, say) -> list[Row]:
    steps = []
    for recipe in recipes:
        say(f"step of {work}: compiling {recipe}")
        steps.append(compiled_step(work, recipe))
    say(f"step of {work}: running")
    timings = interleaved(_taking_turns(work, steps), options.rounds, options.calls)
    baseline = timings[BASELINE].median
    return [_row(work, step, timings[step.recipe], baseline) for step in steps]


def _taking_turns(work: Workload, steps: list[program.Step]) -> dict[str, Callable[[], Any]]:
    """The steps, each of which takes the state that the one before it left."""
    state = program.first_state(work)
    batch, key = program.random_batch(work), jax.random.key(0)

    def turn(step: program.Step) -> Any:
        nonlocal state
        state, measured = step.run(state, batch, key)
        return measured

    return {step.recipe: partial(turn, step) for step in steps}


def _row(work: Workload, step: program.Step, timing: Timing, baseline: float) -> Row:
    tokens, peak = work.batch * work.length, _peak()
    flop = sum(step_flops(work.config, tokens, work.length).values())
    pace = flop / timing.median
    return {
        "model": work.model,
        "size": f"{work.batch}x{work.length}",
        "recipe": step.recipe,
        "milliseconds": 1e3 * timing.median,
        "quartiles": [1e3 * timing.low, 1e3 * timing.high],
        "ratio_to_bf16": timing.median / baseline,
        "tokens_per_second": tokens / timing.median,
        "model_flop": flop,
        "teraflop_per_second": pace / 1e12,
        "model_flops_utilization": pace / peak if peak else None,
        "compile_seconds": step.compile_seconds,
        "planned_bytes": step.total,
    }


def _peak() -> float | None:
    return peak_flops(jax.devices()[0].device_kind)

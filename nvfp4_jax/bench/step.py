"""Whole training steps, as ratios to BF16, and the share of the GPU's peak that they reach.

    MFU = model FLOPs / (seconds x peak FLOP/s)

Model FLOPs are Megatron's count (`nvfp4_jax.training.flops`), the same for every recipe; the peak
is the data sheet's for dense bf16.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax

from nvfp4_jax.bench.options import Memory, Step
from nvfp4_jax.bench.report import Column, Row, Section
from nvfp4_jax.bench.spelling import at_least_one
from nvfp4_jax.recipe import load_recipe
from nvfp4_jax.training.bench_step import StepFigures, bench_step, risen
from nvfp4_jax.training.model_choice import choose_model

ON_A_GPU, ON_A_CPU = ("150m", "1b"), ("tiny",)
LENGTH_ON_A_GPU, LENGTH_ON_A_CPU = 4096, 256
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
    models = options.models or (ON_A_CPU if jax.default_backend() == "cpu" else ON_A_GPU)
    check(options, models)
    at_least_one("--documents", options.documents)
    rows = [row for model in models for row in _rows(model, options, say)]
    facts = {name: getattr(options, name) for name in ("remat", "scan", "mesh", "documents")}
    return Section("step", "Training steps, as ratios to bf16", COLUMNS, rows, facts)


def check(options: Step | Memory, models: Sequence[str]) -> None:
    """Raise what can be known to be wrong before the first step is compiled.

    Raises:
      UsageError: a model that does not exist, or a size below 1.
      RecipeError: a recipe that cannot be read.
    """
    at_least_one("--batch", options.batch)
    at_least_one("--length", options.length)
    for model in models:
        choose_model(model)
    for recipe in options.recipe:
        load_recipe(recipe)


def length_of(options: Step | Memory) -> int:
    """Tokens a row: as asked for, or as models of this kind are trained, less on a CPU."""
    on_cpu = jax.default_backend() == "cpu"
    return options.length or (LENGTH_ON_A_CPU if on_cpu else LENGTH_ON_A_GPU)


def _rows(model: str, options: Step, say: Callable[[str], None]) -> list[Row]:
    length = length_of(options)
    figures = bench_step(
        model,
        options.recipe,
        batch=options.batch,
        length=length,
        rounds=options.rounds,
        documents=options.documents,
        remat=options.remat,
        scan=options.scan,
        mesh=options.mesh,
        say=say,
    )
    size, peaks = f"{options.batch}x{length}", risen(figures)
    return [_row(model, size, one, peaks.get(one.recipe)) for one in figures]


def _row(model: str, size: str, figures: StepFigures, peak: int | None) -> Row:
    return {
        "model": model,
        "size": size,
        "recipe": figures.recipe,
        "milliseconds": 1e3 * figures.seconds,
        "ratio_to_bf16": figures.ratio,
        "tokens_per_second": figures.tokens_per_second,
        "model_flop": figures.model_flops,
        "teraflop_per_second": figures.model_flops / figures.seconds / 1e12,
        "model_flops_utilization": figures.mfu,
        "compile_seconds": figures.compile_seconds,
        "planned_bytes": figures.planned_bytes,
        "device_peak_bytes": peak,
    }

"""Recipes side by side: the same data and seeds for each, one table, one plot.

    WORKDIR/RECIPE-seed0/ ...   a whole run each, continued if it was cut off
    WORKDIR/compare.txt         the table;  compare.json  its numbers;  compare.png  the curves

A gap is relative: (bits of this recipe - bits of the first) / bits of the first, on the held-out
files at the end. Gaps are taken seed by seed and then averaged, since runs of one seed see the
same batches and much of the noise between seeds cancels.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console

from nvfp4_jax.recipe import load_recipe
from nvfp4_jax.training.config import TrainConfig
from nvfp4_jax.training.corpus import load_corpus
from nvfp4_jax.training.distributed import is_first
from nvfp4_jax.training.errors import Interrupted, UsageError
from nvfp4_jax.training.files import write_atomically, write_json
from nvfp4_jax.training.loop import console_here, train
from nvfp4_jax.training.plot import Curve, plot_runs, read_curve
from nvfp4_jax.training.prepare import prepare
from nvfp4_jax.training.summary import Summary


@dataclass(frozen=True)
class Row:
    """One recipe of a comparison.

    Attributes:
      recipe: its name.
      bits_per_byte: on the held-out files at the end, one a seed.
      gaps: relative to the first recipe, one a seed; zeros for the first.
      skipped: steps skipped, over all seeds.
    """

    recipe: str
    bits_per_byte: tuple[float, ...]
    gaps: tuple[float, ...]
    skipped: int


def compare(
    config: TrainConfig, recipes: Sequence[str], seeds: int = 1, console: Console | None = None
) -> tuple[Row, ...]:
    """Train under each recipe with each seed; write and print the table, and draw the plot.

    Args:
      config: the choices all runs share; `workdir` is the folder of them all.
      recipes: names or paths; the first is what the others are measured against.
      seeds: how many, from `config.seed` on.
      console: where progress is shown; standard output if left out.

    Raises:
      UsageError, RecipeError: before any run, whatever is wrong with any of them.
      Interrupted: Ctrl-C, once the run it fell into is saved. After SIGTERM the result is
        empty; in both cases the same call continues.
      Diverged: as `train`.
    """
    console = console or console_here()
    names = _names(recipes)
    if seeds < 1:
        raise UsageError(f"--seeds {seeds}: give a whole number of at least 1")
    corpus = load_corpus(config.data)
    chosen = [
        [_one(config, name, recipe, config.seed + i) for i in range(seeds)]
        for name, recipe in zip(names, recipes, strict=True)
    ]
    for same_recipe in chosen:
        prepare(same_recipe[0], corpus)
    summaries = []
    for group in chosen:
        summaries.append([])
        for one in group:
            summary = train(one, console, corpus)
            if summary.stopped_by:
                return _stopped(summary, console)
            summaries[-1].append(summary)
    rows = _rows(names, summaries)
    if is_first():
        _write(
            config.workdir, rows, [_mean_curve(n, g) for n, g in zip(names, chosen, strict=True)]
        )
    console.print(table(rows), highlight=False, markup=False, soft_wrap=True)
    return rows


def table(rows: Sequence[Row]) -> str:
    """The comparison as text: mean over seeds, and the spread of the gaps between seeds."""
    width = max(len(row.recipe) for row in rows)
    lines = [f"{'recipe':{width}}  held-out bits/byte  gap to {rows[0].recipe}  (over seeds)"]
    for row in rows:
        gap = 100 * statistics.mean(row.gaps)
        spread = f"±{100 * statistics.stdev(row.gaps):.2f}" if len(row.gaps) > 1 else "-"
        skipped = f"  {row.skipped} steps skipped" if row.skipped else ""
        mean = statistics.mean(row.bits_per_byte)
        space = " " * max(len(rows[0].recipe), 1)
        lines.append(f"{row.recipe:{width}}  {mean:18.4f}  {gap:+6.2f}%{space}  {spread}{skipped}")
    return "\n".join(lines)


def _stopped(summary: Summary, console: Console) -> tuple[Row, ...]:
    """A comparison cut short has no table; its runs are saved, and the same command continues."""
    console.print(str(summary), highlight=False, markup=False, soft_wrap=True)
    if summary.interrupted:
        raise Interrupted
    return ()


def _names(recipes: Sequence[str]) -> list[str]:
    if len(recipes) < 2:
        raise UsageError("compare takes two recipes or more: nvfp4 compare bf16 nvfp4 --workdir D")
    names = [load_recipe(recipe).name for recipe in recipes]
    double = next((name for name in names if names.count(name) > 1), None)
    if double:
        raise UsageError(f"two recipes are called {double!r}; give each file its own name")
    return names


def _one(config: TrainConfig, name: str, recipe: str, seed: int) -> TrainConfig:
    workdir = config.workdir / f"{name}-seed{seed}"
    cache = config.compilation_cache or config.workdir / "compilation-cache"
    return dataclasses.replace(
        config, recipe=recipe, seed=seed, workdir=workdir, compilation_cache=cache
    )


def _rows(names: Sequence[str], summaries: Sequence[Sequence[Summary]]) -> tuple[Row, ...]:
    bits = [tuple(s.bits_per_byte or float("nan") for s in group) for group in summaries]
    return tuple(
        Row(
            name,
            mine,
            tuple(m / first - 1 for m, first in zip(mine, bits[0], strict=True)),
            sum(s.skipped for s in group),
        )
        for name, mine, group in zip(names, bits, summaries, strict=True)
    )


def _mean_curve(name: str, configs: Sequence[TrainConfig]) -> Curve:
    """The mean over seeds, step by step."""
    curves = [read_curve(config.workdir, name) for config in configs]
    training = np.mean([curve.training for curve in curves], axis=0)
    held_out = np.mean([curve.held_out for curve in curves], axis=0)
    return Curve(name, curves[0].steps, training, curves[0].held_out_steps, held_out)


def _write(workdir: Path, rows: Sequence[Row], curves: Sequence[Curve]) -> None:
    write_atomically(workdir / "compare.txt", table(rows) + "\n")
    write_json(workdir / "compare.json", [dataclasses.asdict(row) for row in rows])
    plot_runs(workdir / "compare.png", curves)

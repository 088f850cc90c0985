"""The course of a loss as a picture that explains itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from nvfp4_jax.training.bits import bits_per_byte, read_bytes_per_token
from nvfp4_jax.training.files import replacing
from nvfp4_jax.training.metrics import read_lines

INK = "#1f2933"
FAINT = "#9aa5b1"
HELD_OUT_MARKS: dict[str, Any] = {
    "linewidth": 1.2,
    "marker": "o",
    "markersize": 5,
    "markeredgecolor": "white",
    "zorder": 3,
}
COLOURS = ("#2166ac", "#d6604d", "#4d9221", "#8073ac", "#bf812d", "#35978f", "#c51b7d")


@dataclass(frozen=True)
class Curve:
    """One run to draw: bits per byte on its training batches and on held-out files."""

    label: str
    steps: np.ndarray
    training: np.ndarray
    held_out_steps: np.ndarray
    held_out: np.ndarray


def read_curve(workdir: Path, label: str) -> Curve:
    """The logs of a run as a curve; the loss of a skipped step, null, is NaN."""
    steps, size = read_lines(workdir / "metrics.jsonl"), read_bytes_per_token(workdir)
    held = read_lines(workdir / "evaluation.jsonl")
    return Curve(
        label,
        np.array([line["step"] for line in steps]),
        bits_per_byte(np.array([line["loss"] for line in steps], dtype=float), size),
        np.array([line["step"] for line in held]),
        np.array([line["bits_per_byte"] for line in held], dtype=float),
    )


def plot_run(path: Path, curve: Curve, title: str, switches: Sequence[int] = ()) -> None:
    """Write the picture of one run: each step faint, their running mean, and held-out points.

    `switches` are the steps at which the recipe changes precision.
    """
    figure, axes = _canvas(title)
    axes.plot(curve.steps, curve.training, color=COLOURS[0], alpha=0.25, linewidth=0.8)
    mean = _running_mean(curve.training)
    axes.plot(curve.steps, mean, color=COLOURS[0], linewidth=1.8, label="training, running mean")
    if curve.held_out.size:
        x, y = curve.held_out_steps, curve.held_out
        axes.plot(x, y, color=COLOURS[1], label="held out", **HELD_OUT_MARKS)
        _end_value(axes, x, y, f"{y[-1]:.3f}", COLOURS[1])
    for step in switches:
        label = "precision switches" if step == switches[0] else None
        axes.axvline(step, color=FAINT, linewidth=1, linestyle=(0, (4, 3)), label=label)
    _finish(axes, [mean, curve.held_out], "bits per byte")
    _write(figure, path)


def plot_runs(path: Path, curves: Sequence[Curve]) -> None:
    """Write the picture of several runs: above their running means, below their gaps to the first.

    Runs worth comparing lie within a line's width of each other, so the gaps have axes of their
    own: points for held-out files, a line for the running means of the same training batches.
    """
    figure = Figure(figsize=(8, 6.4), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 2])
    first, means = curves[0], [_running_mean(curve.training) for curve in curves]
    for i, (curve, mean) in enumerate(zip(curves, means, strict=True)):
        colour = COLOURS[i % len(COLOURS)]
        end = f"{curve.held_out[-1]:.3f} held out" if curve.held_out.size else "not evaluated"
        label = f"{curve.label}: {end}"
        above.plot(curve.steps, mean, color=colour, linewidth=1.4, label=label)
        if curve is first:
            continue
        below.plot(curve.steps, 100 * (mean / means[0] - 1), color=colour, alpha=0.5, linewidth=1)
        gap = 100 * (curve.held_out / first.held_out - 1)
        below.plot(curve.held_out_steps, gap, color=colour, **HELD_OUT_MARKS)
        _end_value(below, curve.held_out_steps, gap, f"{gap[-1]:+.2f}%", colour)
    below.axhline(0, color=COLOURS[0], linewidth=1.4)
    _title(above, "training, running mean")
    _title(below, f"gap to {first.label}: held out (points), training (line)")
    _finish(above, means, "bits per byte")
    _finish(below, [], "percent")
    above.set_xlabel("")
    _write(figure, path)


def _canvas(title: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(8, 4.8), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    _title(axes, title)
    return figure, axes


def _title(axes: Axes, title: str) -> None:
    axes.set_title(title, loc="left", color=INK, fontsize=11, fontweight="bold", pad=10)


def _end_value(axes: Axes, x: np.ndarray, y: np.ndarray, text: str, colour: str) -> None:
    """Write the last value of a series beside it."""
    axes.annotate(
        text,
        (x[-1], y[-1]),
        xytext=(6, 0),
        textcoords="offset points",
        va="center",
        color=colour,
        fontsize=9,
        annotation_clip=False,
    )


def _finish(axes: Axes, series: Sequence[np.ndarray], unit: str) -> None:
    """Axes that say what they show, and a range that the first steps do not spoil."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(FAINT)
    axes.tick_params(colors=INK, labelsize=9)
    axes.grid(axis="y", color=FAINT, alpha=0.25, linewidth=0.8)
    axes.set_xlabel("step", color=INK)
    axes.set_ylabel(unit, color=INK)
    values = np.concatenate([np.empty(0), *(s[np.isfinite(s)] for s in series)])
    if values.size:
        low, high = values.min(), np.quantile(values, 0.97)
        axes.set_ylim(low - 0.1 * (high - low) - 0.05, high + 0.15 * (high - low) + 0.05)
    axes.margins(x=0.02)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, labelcolor=INK, fontsize=9, loc="upper right")


def _running_mean(values: np.ndarray) -> np.ndarray:
    """Exponential mean over about a fiftieth of the run, corrected for its start."""
    keep = 1 - 1 / max(values.size / 50, 1)
    total, weight, out = 0.0, 0.0, []
    for value in values:
        if math.isfinite(value):
            total, weight = keep * total + value, keep * weight + 1
        out.append(total / weight if weight else math.nan)
    return np.array(out)


def _write(figure: Figure, path: Path) -> None:
    with replacing(path) as temporary:
        figure.savefig(temporary)

"""The course of a loss as a picture that explains itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from nvfp4_jax.training.files import temporary_path
from nvfp4_jax.training.metrics import read_lines

INK = "#1f2933"
FAINT = "#9aa5b1"
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
    steps = read_lines(workdir / "metrics.jsonl")
    held = read_lines(workdir / "evaluation.jsonl")
    return Curve(
        label,
        np.array([line["step"] for line in steps]),
        np.array([line["loss"] for line in steps], dtype=float) / math.log(2),
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
    _held_out(axes, curve, COLOURS[1], "held out")
    for step in switches:
        axes.axvline(step, color=FAINT, linewidth=1, linestyle=(0, (4, 3)))
        axes.annotate(
            "precision switches",
            (step, 1),
            xycoords=("data", "axes fraction"),
            xytext=(-4, -4),
            textcoords="offset points",
            rotation=90,
            ha="right",
            va="top",
            color=FAINT,
            fontsize=8,
        )
    _finish(axes, [mean, curve.held_out])
    _write(figure, path)


def plot_runs(path: Path, curves: Sequence[Curve], title: str) -> None:
    """Write the picture of several runs, one colour each: running means and held-out points."""
    figure, axes = _canvas(title)
    means = []
    for i, curve in enumerate(curves):
        colour = COLOURS[i % len(COLOURS)]
        means.append(_running_mean(curve.training))
        axes.plot(curve.steps, means[-1], color=colour, linewidth=1.4, label=curve.label)
        _held_out(axes, curve, colour, None)
    _finish(axes, [*means, *(curve.held_out for curve in curves)])
    _write(figure, path)


def _canvas(title: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(8, 4.8), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_title(title, loc="left", color=INK, fontsize=11, fontweight="bold", pad=10)
    return figure, axes


def _held_out(axes: Axes, curve: Curve, colour: str, label: str | None) -> None:
    if not curve.held_out.size:
        return
    axes.plot(
        curve.held_out_steps,
        curve.held_out,
        color=colour,
        linestyle="none" if label is None else "-",
        linewidth=1.2,
        marker="o",
        markersize=5,
        markeredgecolor="white",
        label=label,
        zorder=3,
    )
    axes.annotate(
        f"{curve.held_out[-1]:.3f}",
        (curve.held_out_steps[-1], curve.held_out[-1]),
        xytext=(6, 0),
        textcoords="offset points",
        va="center",
        color=colour,
        fontsize=9,
        annotation_clip=False,
    )


def _finish(axes: Axes, series: Sequence[np.ndarray]) -> None:
    """Axes that say what they show, and a range that the first steps do not spoil."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(FAINT)
    axes.tick_params(colors=INK, labelsize=9)
    axes.grid(axis="y", color=FAINT, alpha=0.25, linewidth=0.8)
    axes.set_xlabel("step", color=INK)
    axes.set_ylabel("bits per byte", color=INK)
    values = np.concatenate([s[np.isfinite(s)] for s in series])
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
    temporary = temporary_path(path)
    figure.savefig(temporary)
    temporary.replace(path)

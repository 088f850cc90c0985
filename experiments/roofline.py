"""How close do the quantizers and the linear layers come to what the GPU can do?

Claim: a quantizer is bound by memory and takes as long as copying its bytes; an emulated linear is
bound by the product and takes little longer than BF16.
Command: nvfp4 bench all --json bench.json; python experiments/roofline.py bench.json
Cost: of the command, some minutes of a GPU; of the picture, seconds.
Method: two roofs, both measured in the same run: the bandwidth of a copy and the fastest bare BF16
product. A point's FLOP and bytes are those of the definition (`nvfp4_jax/bench/cases.py`, and
2 x tokens x in x out for each GEMM; every tensor read and written once), whatever was executed.
Found: see BENCHMARKS.md.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tyro
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

INK, FAINT = "#1f2933", "#9aa5b1"
QUANTIZER, BF16, EMULATED = "#2166ac", "#4d9221", "#d6604d"


@dataclass(frozen=True)
class Options:
    """What to draw.

    Attributes:
      json: Files that `nvfp4 bench` wrote; of a benchmark in several, the last counts.
      output: The picture.
      size: Which size of the quantizers; the first if left out.
    """

    json: tyro.conf.Positional[tuple[Path, ...]]
    output: Path = Path("experiments/pictures/roofline.png")
    size: str | None = None


class Point(NamedTuple):
    """A measurement: FLOP a byte, FLOP/s, and what to call it."""

    intensity: float
    pace: float
    name: str
    share: float


def read(paths: Iterable[Path]) -> dict[str, Any]:
    """The sections of several files in one."""
    merged: dict[str, Any] = {}
    for path in paths:
        merged |= json.loads(path.read_text())
    return merged


def quantizer_points(rows: list[dict], size: str) -> tuple[float, list[Point]]:
    """(bandwidth of the copy in bytes/s, points): of each case its kernel alone if it has one."""
    here = [row for row in rows if row["size"] == size]
    copy = next(row for row in here if row["case"] == "copy")
    alone = {row["case"]: row for row in here if row["amax"] == "given"}
    best = {row["case"]: row for row in here if row["case"] != "copy"} | alone
    return 1e9 * copy["gigabytes_per_second"], [
        Point(
            row["flop"] / row["bytes"],
            1e3 * row["flop"] / row["milliseconds"],
            name,
            row["share_of_copy"],
        )
        for name, row in best.items()
    ]


def linear_points(rows: list[dict]) -> tuple[float, list[Point], list[Point]]:
    """(FLOP/s of the fastest bare product, points in bf16, points emulated)."""
    peak = max(row["teraflop_per_second"] for row in rows if row["part"] == "product")
    whole = [row for row in rows if row["part"] == "all"]
    points = {True: [], False: []}
    for row in whole:
        pace = 1e12 * row["teraflop_per_second"]
        intensity = row["flop"] / row["bytes"]
        point = Point(intensity, pace, row["shape"], row["ratio_to_bf16"])
        points[row["precision"] == "bf16"].append(point)
    return 1e12 * peak, points[True], points[False]


def draw(sections: dict[str, Any], size: str) -> Figure:
    """The picture."""
    figure = Figure(figsize=(9, 5.6), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    bandwidth, quantizers = quantizer_points(sections["quantizers"]["rows"], size)
    peak, bf16, emulated = linear_points(sections["linear"]["rows"])
    draw_roofs(axes, bandwidth, peak, (0.2, 1e4))
    draw_points(axes, quantizers, QUANTIZER, "o", f"quantizers, {size} in bf16")
    draw_points(axes, bf16, BF16, "s", "linear forward and backward, bf16")
    draw_points(axes, emulated, EMULATED, "D", "the same, NVFP4 emulated")
    name_quantizers(axes, quantizers)
    name_linears(axes, emulated)
    finish(axes, sections["device"]["name"])
    return figure


def draw_roofs(axes: Axes, bandwidth: float, peak: float, ends: tuple[float, float]) -> None:
    """min(intensity x bandwidth, peak), and what each of the two is."""
    x = np.array([ends[0], peak / bandwidth, ends[1]])
    axes.plot(x, np.minimum(x * bandwidth, peak) / 1e12, color=INK, linewidth=1.4, zorder=1)
    style: dict[str, Any] = {"color": INK, "fontsize": 9, "rotation_mode": "anchor"}
    name = f"a copy: {bandwidth / 1e9:,.0f} GB/s"
    axes.annotate(name, (8, 1.25 * 8 * bandwidth / 1e12), rotation=38, **style)
    name = f"a bf16 product: {peak / 1e12:,.0f} TFLOP/s"
    axes.annotate(name, (ends[1], 1.12 * peak / 1e12), ha="right", **style)


def draw_points(axes: Axes, points: list[Point], colour: str, marker: str, label: str) -> None:
    """One series."""
    axes.scatter(
        [point.intensity for point in points],
        [point.pace / 1e12 for point in points],
        color=colour,
        marker=marker,
        s=28,
        edgecolor="white",
        linewidth=0.5,
        label=label,
        zorder=3,
    )


def name_quantizers(axes: Axes, points: list[Point]) -> None:
    """Names and shares of a copy beside the points, one text for those that lie together."""
    for members in together(points):
        middle = members[len(members) // 2]
        axes.annotate(
            "\n".join(f"{point.name} {point.share:.0%}" for point in members),
            (middle.intensity, middle.pace / 1e12),
            xytext=(6 + 16 * len(members), -12),  # a long list beside its neighbours' short ones
            textcoords="offset points",
            va="top",
            fontsize=7.5,
            color=QUANTIZER,
            arrowprops={"arrowstyle": "-", "color": FAINT, "linewidth": 0.6},
        )


def together(points: list[Point], factor: float = 1.2) -> list[list[Point]]:
    """Points in groups of about the same intensity, each group from the best share down."""
    groups: list[list[Point]] = []
    for point in sorted(points):
        if not groups or point.intensity > factor * groups[-1][0].intensity:
            groups.append([])
        groups[-1].append(point)
    return [sorted(group, key=lambda point: -point.share) for group in groups]


def name_linears(axes: Axes, points: list[Point]) -> None:
    """Shapes and ratios to bf16, listed below the cluster they would not fit beside."""
    lines = [f"{point.name}: {point.share:.2f} of bf16's time" for point in points]
    left = min(point.intensity for point in points)
    axes.annotate(
        "\n".join(lines),
        (left, min(point.pace for point in points) / 1e12),
        xytext=(0, -14),
        textcoords="offset points",
        ha="center",
        va="top",
        fontsize=7.5,
        color=EMULATED,
    )


def finish(axes: Axes, device: str) -> None:
    """Axes that say what they show."""
    axes.set_xscale("log")
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.set_ylim(low / 2, high)  # room for names below the lowest points
    axes.set_xlabel("FLOP a byte that must be moved", color=INK)
    axes.set_ylabel("TFLOP/s", color=INK)
    axes.set_title(f"Roofline, {device}", loc="left", color=INK, fontsize=11, fontweight="bold")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.grid(color=FAINT, alpha=0.25, linewidth=0.6)
    axes.tick_params(colors=INK, labelsize=9)
    axes.legend(frameon=False, labelcolor=INK, fontsize=9, loc="lower right")


def main(options: Options) -> None:
    """Read, draw, write."""
    sections = read(options.json)
    missing = {"quantizers", "linear"} - set(sections)
    if missing:
        raise SystemExit(f"no figures of {' and '.join(sorted(missing))}; run nvfp4 bench all")
    size = options.size or sections["quantizers"]["rows"][0]["size"]
    draw(sections, size).savefig(options.output)
    print(f"wrote {options.output}")


if __name__ == "__main__":
    main(tyro.cli(Options))

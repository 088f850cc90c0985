"""Draw loss.png: a small model trained in BF16 and in NVFP4, and the gap between the two.

    nvfp4 compare bf16 nvfp4 --steps 200 --workdir runs/compare
    python notebooks/pictures/loss.py runs/compare

Both runs see the same batches, so the gap is shown step by step, as a running mean.
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from nvfp4_jax.training.plot import Curve, read_curve

INK, FAINT = "#1f2933", "#9aa5b1"
COLOURS = {"bf16": "#2166ac", "nvfp4": "#d6604d"}
LABELS = {"bf16": (4, -11), "nvfp4": (4, 4)}  # where the last number goes: they are close


def smooth(values: np.ndarray, width: int = 15) -> np.ndarray:
    """The mean over `width` steps around each; over fewer at the ends."""
    ones = np.ones(width)
    return np.convolve(values, ones, "same") / np.convolve(np.ones_like(values), ones, "same")


def draw(curves: dict[str, Curve], path: Path) -> None:
    """Bits per byte above, the relative gap below."""
    figure, (top, below) = plt.subplots(
        2, figsize=(8, 4.6), dpi=120, height_ratios=(3, 1), sharex=True, layout="constrained"
    )
    for name, curve in curves.items():
        colour, last = COLOURS[name], curve.held_out[-1]
        top.plot(curve.steps, curve.training, color=colour, alpha=0.5, linewidth=1)
        label = f"{name.upper()}, held out"
        top.plot(curve.held_out_steps, curve.held_out, "o-", color=colour, label=label)
        place = (curve.held_out_steps[-1], last)
        top.annotate(f"{last:.3f}", place, LABELS[name], textcoords="offset points", color=colour)
    top.set(ylim=(1.5, 6), ylabel="bits per byte")
    top.set_title("tiny, 1.1 M parameters, 8 x 256 bytes a step", loc="left", fontsize=10.5)
    top.legend(frameon=False)
    gap = 100 * (curves["nvfp4"].training / curves["bf16"].training - 1)
    below.plot(curves["nvfp4"].steps, smooth(gap), color=INK, linewidth=1.4)
    below.axhline(0, color=FAINT, linewidth=0.8)
    below.set(ylim=(-1, 4), yticks=(0, 2, 4), ylabel="gap, %", xlabel="step")
    for axes in (top, below):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color=FAINT, alpha=0.25)
    figure.savefig(path)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    read = {name: read_curve(folder / f"{name}-seed0", name) for name in COLOURS}
    draw(read, Path(__file__).with_suffix(".png"))

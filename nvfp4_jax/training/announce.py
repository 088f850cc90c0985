"""What a run says of itself before its first step: what is trained, on what, and where."""

from __future__ import annotations

import jax
from rich.console import Console

from nvfp4_jax.training.distributed import several
from nvfp4_jax.training.prepare import Run
from nvfp4_jax.training.resume import parameter_count
from nvfp4_jax.training.state import TrainState


def announce(run: Run, state: TrainState, console: Console) -> None:
    """Say what is about to be trained, on what, and how."""
    quantized = sum(p.quantized for _, p in run.phases[0].table)
    lines = [
        f"{run.config.model}: {parameter_count(state):,} parameters, "
        f"{quantized} of {len(run.phases[0].table)} linear layers quantized by {run.recipe.name}",
        run.corpus.describe(),
        _where(run),
    ]
    for line in lines:
        plainly(console, line)


def _where(run: Run) -> str:
    size, device = run.mesh.size, run.mesh.devices.flat[0].device_kind
    unused = len(jax.devices()) - size
    here = f"on one {device} device" if size == 1 else f"on {size} {device} devices, mesh "
    layout = "" if size == 1 else f"{run.config.mesh}"
    processes = f", {jax.process_count()} processes" if several() else ""
    return here + layout + processes + (f"; {unused} more are idle" if unused else "")


def plainly(console: Console, line: str) -> None:
    """A line as it is: no colours, no markup, no line breaks of rich's."""
    console.print(line, highlight=False, markup=False, soft_wrap=True)

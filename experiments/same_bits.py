"""Are the first loss and its gradients the same bits on one device and on several?

Claim: with sums in one order (`--sum-parts`, `--feature-parts`) they are, on `data`, `fsdp` and
`tensor`, on CPUs and on GPUs, in BF16 and in NVFP4; without, they differ in the last digits.
Command: python -m experiments.same_bits [--model 1b --batch 4 --length 4096]
Cost: on two H200 about two minutes for `1b`, most of it compilation, side by side.
Method: parameters, random tokens and key are the same everywhere; the compiled loss and gradients
of each mesh are compared with one device's, number by number. `--sum-parts None` for any order.
Simulated devices do for a trial: JAX_PLATFORMS=cpu
XLA_FLAGS=--xla_force_host_platform_device_count=2, `--model tiny --length 64`.
Found: see BENCHMARKS.md, "The same run on any mesh".
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import jax
import numpy as np
import tyro

from nvfp4_jax.training.lone_step import (
    LoneStep,
    compile_gradients,
    first_state,
    random_batch,
    run_key,
)

ONE = "data=1"


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to compare.

    Attributes:
      model: a preset or a JSON file.
      recipes: names or TOML files.
      meshes: to compare with one device.
      batch: rows, of all devices together.
      length: tokens a row.
      sum_parts, feature_parts: as in training.
    """

    model: str = "tiny"
    recipes: tuple[str, ...] = ("bf16", "nvfp4")
    meshes: tuple[str, ...] = ("data=2", "fsdp=2", "tensor=2")
    batch: int = 4
    length: int = 4096
    sum_parts: int | None = 2
    feature_parts: int | None = 2


def steps(options: Options, recipe: str) -> dict[str, LoneStep]:
    """By mesh, one device first."""
    return {
        mesh: LoneStep(
            model=options.model,
            recipe=recipe,
            batch=options.batch,
            length=options.length,
            mesh=mesh,
            sum_parts=options.sum_parts,
            feature_parts=options.feature_parts,
        )
        for mesh in (ONE, *options.meshes)
    }


def measured(step: LoneStep, run: jax.stages.Compiled) -> tuple[float, list[np.ndarray]]:
    """(loss, gradients by path) on the host."""
    found = run(first_state(step).parameters, random_batch(step), run_key(step))
    loss, gradients = jax.device_get(found)
    return float(loss), [gradients[path] for path in sorted(gradients)]


def norm(arrays: Iterable[np.ndarray]) -> float:
    """Of all numbers."""
    return float(np.sqrt(sum(np.vdot(a, a) for a in arrays)))


def told(
    mesh: str, one: tuple[float, list[np.ndarray]], own: tuple[float, list[np.ndarray]]
) -> str:
    """A line on how a mesh's loss and gradients differ from one device's; -0 is 0."""
    pairs = list(zip(one[1], own[1], strict=True))
    differ, total = sum(int(np.sum(a != b)) for a, b in pairs), sum(a.size for a, _ in pairs)
    apart = norm(b - a for a, b in pairs) / norm(one[1])
    loss = abs(own[0] / one[0] - 1)
    return f"{mesh}: loss {loss:.1e}; {differ:,} of {total:,} gradients differ, {apart:.1e} by norm"


def main(options: Options) -> None:
    """Compile all meshes of a recipe side by side, run one after the other, and print."""
    for recipe in options.recipes:
        every = steps(options, recipe)
        with ThreadPoolExecutor() as pool:
            compiled = dict(zip(every, pool.map(compile_gradients, every.values()), strict=True))
        one = measured(every[ONE], compiled[ONE])
        print(f"{recipe}: one device has loss {one[0]:.9f}", flush=True)
        for mesh in options.meshes:
            print("   ", told(mesh, one, measured(every[mesh], compiled[mesh])), flush=True)


if __name__ == "__main__":
    main(tyro.cli(Options))

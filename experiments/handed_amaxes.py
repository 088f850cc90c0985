"""What does it save that relu^2 hands its amaxes on to the quantizers after it?

Claim: not a bit of a training step changes, and an NVFP4 step of `150m` takes 1% less.
Command: python -m experiments.handed_amaxes [--model 150m --batch 8 --length 4096 --rounds 24]
Cost: about three minutes of one H100, most of it compilation.
Method: the step in BF16, in NVFP4 with every amax a pass of its own (`passes`: the one function
that hands them on is switched off while that step is traced), and in NVFP4 as it is (`handed`).
Three steps of both are compared bit for bit; then all run in turns, each step waited for; medians,
and the median of the rounds' differences, since a GPU's clock wanders by more than is looked for.
Found: see BENCHMARKS.md, "An operand's amax from its producer".
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import jax
import numpy as np
import tyro

from nvfp4_jax.training import chains
from nvfp4_jax.training.lone_step import LoneStep, compile_step, first_state, random_batch, run_key


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to time.

    Attributes:
      model: a preset or a JSON file.
      recipe: the recipe beside bf16.
      batch: rows a step.
      length: tokens a row.
      rounds: steps timed of each variant.
    """

    model: str = "150m"
    recipe: str = "nvfp4"
    batch: int = 8
    length: int = 4096
    rounds: int = 24


@contextlib.contextmanager
def every_amax_a_pass() -> Iterator[None]:
    """While a step is traced: no MLP hands amaxes on."""
    with mock.patch.object(chains, "relu_squared_mlp", return_value=None):
        yield


def compile_all(step: LoneStep, recipe: str) -> dict[str, Callable[..., Any]]:
    """The three steps by name; says how many MLPs hand amaxes on, which on a CPU is none."""
    quantized = replace(step, recipe=recipe)
    told: list[bool] = []

    def counted(*arguments: Any) -> jax.Array | None:
        result = hand_on(*arguments)
        told.append(result is not None)
        return result

    hand_on = chains.relu_squared_mlp
    with every_amax_a_pass():
        compiled = {"bf16": compile_step(step), "passes": compile_step(quantized)}
    with mock.patch.object(chains, "relu_squared_mlp", counted):
        compiled["handed"] = compile_step(quantized)
    print(f"MLPs that hand amaxes on, as traced: {sum(told)} of {len(told)}", flush=True)
    return compiled


def bits_that_differ(step: LoneStep, one: Callable[..., Any], other: Callable[..., Any]) -> int:
    """Of loss, norms and every parameter after three steps from the same start."""

    def after_three(run: Callable[..., Any]) -> Any:
        state, batch, key, told = first_state(step), random_batch(step), run_key(step), None
        for _ in range(3):
            state, told = run(state, batch, key)
        return jax.tree.leaves(jax.tree.map(np.asarray, (told, state.parameters)))

    pairs = zip(after_three(one), after_three(other), strict=True)
    return sum(int(np.sum(a.view(np.uint32) != b.view(np.uint32))) for a, b in pairs)


def in_turns(
    step: LoneStep, compiled: dict[str, Callable[..., Any]], rounds: int
) -> dict[str, list[float]]:
    """Milliseconds of every step timed, after two rounds that are not."""
    state, batch, key = first_state(step), random_batch(step), run_key(step)
    taken: dict[str, list[float]] = {name: [] for name in compiled}
    for number in range(rounds + 2):
        for name, run in compiled.items():
            start = time.perf_counter()
            state, _ = jax.block_until_ready(run(state, batch, key))
            if number >= 2:
                taken[name].append(1e3 * (time.perf_counter() - start))
    return taken


def main(options: Options) -> None:
    """Compile, compare, time, and print."""
    step = LoneStep(model=options.model, recipe="bf16", batch=options.batch, length=options.length)
    compiled = compile_all(step, options.recipe)
    differ = bits_that_differ(step, compiled["passes"], compiled["handed"])
    print(f"numbers that differ after three steps: {differ}", flush=True)
    taken = in_turns(step, compiled, options.rounds)
    medians = {name: statistics.median(times) for name, times in taken.items()}
    for name, median in medians.items():
        print(f"{name:7} {median:9.3f} ms   {median / medians['bf16']:.4f} of bf16")
    saved = [a - b for a, b in zip(taken["passes"], taken["handed"], strict=True)]
    print(f"saved   {statistics.median(saved):9.3f} ms, median of the rounds' differences")


if __name__ == "__main__":
    main(tyro.cli(Options))

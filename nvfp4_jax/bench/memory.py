"""Memory of a training step, as a ratio to BF16, and what one linear layer keeps of its input.

The compiler knows what a step will allocate: arguments (parameters, both moments, the batch) and
temporaries, among them all that is kept from the forward pass for the backward pass. Where there
is room the step is run as well and the device asked for its peak. That counter only rises, so the
variants run from the smallest to the largest, and a peak that does not rise is not told.

What a linear keeps is read off its `jax.vjp`: the bytes that grow with the tokens, an element of
the input each. The weight does not grow with them, and it is kept anyway.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from nvfp4_jax.bench.linear import NUMBERS
from nvfp4_jax.bench.options import Memory
from nvfp4_jax.bench.program import (
    Step,
    Workload,
    check,
    compiled_step,
    first_state,
    random_batch,
)
from nvfp4_jax.bench.report import Column, Row, Section
from nvfp4_jax.bench.spelling import at_least_one
from nvfp4_jax.dot_general import make_dot_general
from nvfp4_jax.precision import LinearPrecision

BASELINE = "bf16"
ROOM = 0.9  # of the device's memory: what a step may take for us to run it
COLUMNS = (
    Column("recipe", "recipe"),
    Column("total_bytes", "step, bytes", ",d"),
    Column("ratio_to_bf16", "to bf16", ".3f"),
    Column("temporary_bytes", "of which temporary", ",d"),
    Column("temporary_ratio_to_bf16", "to bf16", ".3f"),
    Column("device_peak_bytes", "device's peak", ",d"),
    Column("device_peak_ratio_to_bf16", "to bf16", ".3f"),
    Column("bits_per_saved_element", "bits a saved element", ".2f"),
)


def measure(options: Memory, say: Callable[[str], None]) -> Section:
    """Compile, and where there is room run, a step in bf16 and in every recipe.

    Raises:
      UsageError: a model that does not exist, or a size below 1.
      RecipeError: a recipe that cannot be read or does not fit the model.
    """
    at_least_one("--batch", options.batch)
    at_least_one("--length", options.length)
    work = workload(options)
    recipes = tuple(dict.fromkeys((BASELINE, *options.recipe)))
    check(work, recipes)
    steps = []
    for recipe in recipes:
        say(f"memory of {work}: compiling {recipe}")
        steps.append(compiled_step(work, recipe))
    peaks = _peaks(steps, work, say)
    baseline, baseline_peak = steps[0], peaks.get(BASELINE)
    rows = [_row(step, baseline, peaks.get(step.recipe), baseline_peak) for step in steps]
    facts = {"model": work.model, "batch": work.batch, "length": work.length, "remat": work.remat}
    return Section("memory", f"Memory of a training step: {work}", COLUMNS, rows, facts)


def workload(options: Memory) -> Workload:
    """What was asked for; what was not is 1b at the length of its training, or small on a CPU."""
    on_cpu = jax.default_backend() == "cpu"
    model = options.model or ("tiny" if on_cpu else "1b")
    return Workload(
        model, options.batch, options.length or (256 if on_cpu else 4096), remat=options.remat
    )


def bits_per_saved_element(precision: LinearPrecision, features: int = 256) -> float:
    """What a linear in `precision` keeps of its bf16 input from forward to backward, in bits.

    Source of the count: the leaves of `jax.vjp`'s closure, at two numbers of tokens.
    """
    key = jax.random.key(0)

    def kept(tokens: int) -> int:
        x = jax.ShapeDtypeStruct((tokens, features), jnp.bfloat16)
        w = jax.ShapeDtypeStruct((features, 2 * features), jnp.float32)
        dot = make_dot_general(precision, key)
        pull = jax.eval_shape(lambda x, w: jax.vjp(lambda x, w: dot(x, w, NUMBERS), x, w)[1], x, w)
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(pull))

    few, many = 1024, 2048
    return 8 * (kept(many) - kept(few)) / ((many - few) * features)


def _peaks(steps: list[Step], work: Workload, say: Callable[[str], None]) -> dict[str, int]:
    """The device's own peak in bytes, where it counts one and a step has room."""
    device = jax.devices()[0]
    peaks: dict[str, int] = {}
    for step in sorted(steps, key=lambda step: step.total):
        before = device.memory_stats()
        if not before or step.total > ROOM * before["bytes_limit"]:
            break
        say(f"memory of {work}: running {step.recipe}")
        result = step.run(first_state(work), random_batch(work), jax.random.key(0))
        jax.block_until_ready(result)
        peak = device.memory_stats()["peak_bytes_in_use"]
        if peak > before["peak_bytes_in_use"]:
            peaks[step.recipe] = peak
    return peaks


def _row(step: Step, baseline: Step, peak: int | None, baseline_peak: int | None) -> Row:
    return {
        "recipe": step.recipe,
        "argument_bytes": step.arguments,
        "temporary_bytes": step.temporary,
        "total_bytes": step.total,
        "ratio_to_bf16": step.total / baseline.total,
        "temporary_ratio_to_bf16": step.temporary / baseline.temporary,
        "device_peak_bytes": peak,
        "device_peak_ratio_to_bf16": peak / baseline_peak if peak and baseline_peak else None,
        "bits_per_saved_element": bits_per_saved_element(step.quantized),
    }

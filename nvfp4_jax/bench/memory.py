"""Memory of a training step, as a ratio to BF16, and what one linear layer keeps of its input.

The compiler knows what a step will allocate: arguments (parameters, both moments, the batch) and
temporaries, among them all that is kept from the forward pass for the backward pass. The device
counts as well; its peak only rises, so the variants run from the smallest to the largest, and a
peak that did not rise is not told.

What a linear keeps is read off its `jax.vjp`: the bytes that grow with the tokens, an element of
the input each. The weight does not grow with them, and it is kept anyway.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from nvfp4_jax.bench.linear import NUMBERS
from nvfp4_jax.bench.options import Memory
from nvfp4_jax.bench.report import Column, Row, Section
from nvfp4_jax.bench.step import check, length_of
from nvfp4_jax.dot_general import make_dot_general
from nvfp4_jax.precision import LinearPrecision
from nvfp4_jax.recipe import load_recipe
from nvfp4_jax.training.bench_step import BASELINE, StepFigures, bench_step, risen

COLUMNS = (
    Column("recipe", "recipe"),
    Column("planned_bytes", "a step, bytes", ",d"),
    Column("ratio_to_bf16", "to bf16", ".3f"),
    Column("device_peak_bytes", "device's peak", ",d"),
    Column("device_peak_ratio_to_bf16", "to bf16", ".3f"),
    Column("bits_per_saved_element", "bits a saved element", ".2f"),
)


def measure(options: Memory, say: Callable[[str], None]) -> Section:
    """Compile and run a step in bf16 and in every recipe.

    Raises:
      UsageError: a model that does not exist, or a size below 1.
      RecipeError: a recipe that cannot be read or does not fit the model.
    """
    model = options.model or ("tiny" if jax.default_backend() == "cpu" else "1b")
    check(options, [model])
    batch, length = options.batch, length_of(options)
    figures = bench_step(
        model,
        options.recipe,
        batch=batch,
        length=length,
        rounds=1,
        remat=options.remat,
        scan=options.scan,
        say=say,
    )
    peaks = risen(figures)
    baseline = next(one for one in figures if one.recipe == BASELINE)
    rows = [_row(one, baseline, peaks.get(one.recipe), peaks.get(BASELINE)) for one in figures]
    title = f"Memory of a training step: {model}, {batch} x {length} tokens, remat {options.remat}"
    facts = {"model": model, "batch": batch, "length": length}
    facts |= {"remat": options.remat, "scan": options.scan}
    return Section("memory", title, COLUMNS, rows, facts)


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


def _row(
    figures: StepFigures, baseline: StepFigures, peak: int | None, baseline_peak: int | None
) -> Row:
    precisions = load_recipe(figures.recipe).precision.values()
    quantized = next((p for p in precisions if p.quantized), LinearPrecision())
    return {
        "recipe": figures.recipe,
        "planned_bytes": figures.planned_bytes,
        "ratio_to_bf16": figures.planned_bytes / baseline.planned_bytes,
        "device_peak_bytes": peak,
        "device_peak_ratio_to_bf16": peak / baseline_peak if peak and baseline_peak else None,
        "bits_per_saved_element": bits_per_saved_element(quantized),
    }

"""One linear layer, Fprop + Dgrad + Wgrad, as a ratio to BF16.

    y = x w        dx = dy wᵀ        dw = xᵀ dy

in one program, as a training step has them: bf16 inputs and gradients (normally distributed), an
FP32 weight that is cast or quantized inside, bf16 results and an FP32 weight gradient. The
baseline is the library's own bf16 precision through the same `make_dot_general`, and a bare bf16
product says how fast the GPU multiplies at all.

A GEMM runs some 8% faster on quantized data than on random bf16, since it draws less power; the
ratio includes that, as training would.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from nvfp4_jax.bench.options import Linear, Part
from nvfp4_jax.bench.report import Column, Row, Section
from nvfp4_jax.bench.spelling import implementations, one_of, sizes
from nvfp4_jax.bench.timing import LONG_ENOUGH, STEADY, Timing, interleaved
from nvfp4_jax.dot_general import make_dot_general
from nvfp4_jax.precision import LinearPrecision
from nvfp4_jax.recipe import load_recipe
from nvfp4_jax.training.errors import UsageError

ON_A_GPU = (
    "4096x4096x4096",
    "8192x8192x8192",
    "8192x5120x20480",
    "8192x20480x5120",
    "8192x5120x22656",
    "8192x10240x5120",
)
ON_A_CPU = ("256x256x512",)
NUMBERS = (((1,), (0,)), ((), ()))
GEMMS = {"all": 3, "product": 1, "fprop": 1, "dgrad": 1, "wgrad": 1}
COLUMNS = (
    Column("shape", "tokens x in x out"),
    Column("part", "GEMMs"),
    Column("precision", "precision"),
    Column("implementation", "implementation"),
    Column("milliseconds", "ms", ".3f"),
    Column("ratio_to_bf16", "to bf16", ".3f"),
    Column("teraflop_per_second", "TFLOP/s", ",.1f"),
    Column("share_of_product", "of a bare product", ".1%"),
)


class Inputs(NamedTuple):
    """What a layer is given: x, w and dy."""

    x: jax.Array
    w: jax.Array
    dy: jax.Array


class Variant(NamedTuple):
    """One row to be."""

    part: str
    precision: str
    implementation: str | None
    call: Callable[[], Any]


def measure(options: Linear, say: Callable[[str], None]) -> Section:
    """Time the layer at every shape, in bf16 and in the recipe's precision.

    Raises:
      UsageError: a shape, precision or implementation that does not exist.
      RecipeError: a recipe that cannot be read.
    """
    default = ON_A_CPU if jax.default_backend() == "cpu" else ON_A_GPU
    shapes = sizes("--shapes", options.shapes or default, "TOKENSxINxOUT")
    name, precision = chosen_precision(options.recipe, options.precision)
    names = implementations(options.implementation)
    rows: list[Row] = []
    for shape in shapes:
        say(f"linear {'x'.join(map(str, shape))}")
        inputs = draw(shape)
        variants = list(_variants(inputs, options.parts or ("all",), name, precision, names))
        rows += _rows(shape, variants, options)
    title = f"One linear layer, {name} of recipe {options.recipe}, as a ratio to bf16"
    return Section("linear", title, COLUMNS, rows)


def chosen_precision(recipe: str, name: str | None) -> tuple[str, LinearPrecision]:
    """(name, precision) of a recipe: the one asked for, or the only one that is not bf16.

    Raises:
      UsageError: there is none of this name, or none is named and there are several.
    """
    quantized = {n: p for n, p in load_recipe(recipe).precision.items() if p.quantized}
    names = tuple(quantized)
    if name is not None:
        return name, quantized[one_of("--precision", name, names)]
    if len(names) != 1:
        has = f"has {', '.join(names)}; name one with --precision" if names else "quantizes nothing"
        raise UsageError(f"--recipe {recipe}: it {has}")
    return names[0], quantized[names[0]]


@partial(jax.jit, static_argnums=0)
def draw(shape: tuple[int, int, int]) -> Inputs:
    """Normal x and dy in bf16, and a weight in FP32 that keeps their size."""
    tokens, inputs, outputs = shape
    keys = jax.random.split(jax.random.key(0), 3)
    return Inputs(
        jax.random.normal(keys[0], (tokens, inputs), jnp.bfloat16),
        jax.random.normal(keys[1], (inputs, outputs), jnp.float32) * inputs**-0.5,
        jax.random.normal(keys[2], (tokens, outputs), jnp.bfloat16),
    )


def layer(
    part: Part, precision: LinearPrecision, implementation: str | None
) -> Callable[[Inputs, jax.Array], tuple[jax.Array, ...]]:
    """The results of a part of the layer; what it does not return is not computed."""

    def run(inputs: Inputs, key: jax.Array) -> tuple[jax.Array, ...]:
        dot = make_dot_general(precision, key, implementation)
        y, pull = jax.vjp(lambda x, w: dot(x, w, NUMBERS), inputs.x, inputs.w)
        dx, dw = pull(inputs.dy)
        results = {"all": (y, dx, dw), "fprop": (y,), "dgrad": (dx,), "wgrad": (dw,)}
        return results[part]

    return run


def _product(inputs: Inputs) -> Callable[[], jax.Array]:
    """y = x w alone, compiled, of a weight that is bf16 already."""
    arguments = inputs.x, jax.jit(lambda w: w.astype(jnp.bfloat16))(inputs.w)
    program = jax.jit(lambda x, w: lax.dot_general(x, w, NUMBERS)).lower(*arguments).compile()
    return partial(program, *arguments)


def _variants(
    inputs: Inputs, parts: tuple[Part, ...], name: str, precision: LinearPrecision, implementations
) -> Iterator[Variant]:
    def compiled(function: Callable) -> Callable:
        key = jax.random.key(1)
        return partial(jax.jit(function).lower(inputs, key).compile(), inputs, key)

    yield Variant("product", "bf16", None, _product(inputs))
    for part in dict.fromkeys(parts):
        yield Variant(part, "bf16", None, compiled(layer(part, LinearPrecision(), None)))
        for implementation in implementations:
            run = compiled(layer(part, precision, implementation))
            yield Variant(part, name, implementation, run)


def _rows(shape: tuple[int, ...], variants: list[Variant], options: Linear) -> list[Row]:
    calls = {str(i): variant.call for i, variant in enumerate(variants)}
    stretch = LONG_ENOUGH if jax.default_backend() == "cpu" else STEADY
    timings = list(interleaved(calls, options.rounds, options.calls, stretch).values())
    taken = list(zip(variants, timings, strict=True))
    baselines = {v.part: timing.median for v, timing in taken if v.precision == "bf16"}
    return [_row(shape, variant, timing, baselines) for variant, timing in taken]


def _row(shape: tuple[int, ...], variant: Variant, timing: Timing, baselines: dict) -> Row:
    tokens, inputs, outputs = shape
    flop = 2 * tokens * inputs * outputs
    pace, bare = GEMMS[variant.part] * flop / timing.median, variant.part == "product"
    return {
        "shape": "x".join(map(str, shape)),
        "part": variant.part,
        "precision": variant.precision,
        "implementation": variant.implementation,
        "milliseconds": 1e3 * timing.median,
        "quartiles": [1e3 * timing.low, 1e3 * timing.high],
        "ratio_to_bf16": None if bare else timing.median / baselines[variant.part],
        "flop": GEMMS[variant.part] * flop,
        "bytes": bytes_moved(variant.part, shape),
        "teraflop_per_second": pace / 1e12,
        "share_of_product": pace / (flop / baselines["product"]),
    }


def bytes_moved(part: str, shape: tuple[int, ...]) -> int:
    """What must be read and written at least: each tensor once, bf16, a layer's weight FP32."""
    tokens, inputs, outputs = shape
    width = 2 if part == "product" else 4
    x, w, y = 2 * tokens * inputs, width * inputs * outputs, 2 * tokens * outputs
    once = x + w + y
    return 2 * once if part == "all" else once

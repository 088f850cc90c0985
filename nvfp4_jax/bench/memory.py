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
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from nvfp4_jax import models
from nvfp4_jax.bench.linear import NUMBERS
from nvfp4_jax.bench.options import Memory
from nvfp4_jax.bench.report import Column, Row, Section
from nvfp4_jax.bench.spelling import at_least_one
from nvfp4_jax.dot_general import make_dot_general
from nvfp4_jax.precision import LinearPrecision
from nvfp4_jax.recipe import load_recipe
from nvfp4_jax.training.binding import Table, precision_table
from nvfp4_jax.training.model_choice import choose_model
from nvfp4_jax.training.optimizer import adamw, learning_rate_schedule
from nvfp4_jax.training.state import abstract_model, initial_state
from nvfp4_jax.training.step import Program, make_step

BASELINE = "bf16"
SCANNED_FROM = 24  # blocks, as in training: shorter models are compiled unrolled
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


class Compiled(NamedTuple):
    """A step of one recipe, and what the compiler says of its memory, in bytes.

    Results live where arguments were given up for them; those that do not count as arguments.
    """

    recipe: str
    run: Callable[..., Any]
    state: Any
    arguments: int
    temporary: int
    bits: float

    @property
    def total(self) -> int:
        return self.arguments + self.temporary


def measure(options: Memory, say: Callable[[str], None]) -> Section:
    """Compile, and where there is room run, a step in bf16 and in every recipe.

    Raises:
      UsageError: a model that does not exist, or a size below 1.
      RecipeError: a recipe that cannot be read or does not fit the model.
    """
    on_cpu = jax.default_backend() == "cpu"
    name = options.model or ("tiny" if on_cpu else "1b")
    length = options.length or (256 if on_cpu else 4096)
    at_least_one("--batch", options.batch)
    at_least_one("--length", options.length)
    config = choose_model(name)
    tables = {r: _table(r, config) for r in dict.fromkeys((BASELINE, *options.recipe))}
    batch = random_batch(options.batch, length, config.vocabulary)
    compiled = []
    for recipe, table in tables.items():
        say(f"memory {name}, {options.batch} x {length}: compiling {recipe}")
        compiled.append(_compile(recipe, table, config, batch, options.remat))
    rows = _rows(compiled, _peaks(compiled, batch, say))
    title = f"Memory of a training step: {name}, {options.batch} x {length} tokens"
    facts = {"model": name, "batch": options.batch, "length": length, "remat": options.remat}
    return Section("memory", title, COLUMNS, rows, facts)


def random_batch(rows: int, length: int, vocabulary: int) -> dict[str, jax.Array]:
    """One microbatch of random tokens, two documents a row."""
    shape = (1, rows, length)
    tokens = jax.random.randint(jax.random.key(1), shape, 0, vocabulary)
    segments = jnp.broadcast_to(jnp.arange(length) * 2 // length + 1, shape)
    mask = jnp.ones(shape, jnp.float32)
    return {"tokens": tokens, "targets": tokens, "segment_ids": segments, "mask": mask}


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


def _table(recipe: str, config: models.HybridConfig) -> Table:
    return precision_table(load_recipe(recipe), abstract_model(config), config.num_blocks)


def _compile(recipe, table: Table, config: models.HybridConfig, batch, remat) -> Compiled:
    program = Program(
        config,
        nnx.graphdef(abstract_model(config)),
        remat=remat,
        scan=config.num_blocks >= SCANNED_FROM,
    )
    optimizer = adamw()
    step = make_step(program, table, optimizer, learning_rate_schedule(1e-3, 100, 10, 0.2))
    state = jax.eval_shape(lambda: initial_state(config, optimizer, 0))
    run = jax.jit(step, donate_argnums=0).lower(state, batch, jax.random.key(0)).compile()
    told = run.memory_analysis()
    assert told is not None  # CPUs and GPUs tell
    arguments = told.argument_size_in_bytes + told.output_size_in_bytes - told.alias_size_in_bytes
    quantized = [p for _, p in table if p.quantized] or [LinearPrecision()]
    bits = bits_per_saved_element(quantized[0])
    return Compiled(recipe, run, state, arguments, told.temp_size_in_bytes, bits)


def _peaks(compiled: list[Compiled], batch: Any, say: Callable[[str], None]) -> dict[str, int]:
    """The device's own peak in bytes, where it counts one and a step has room.

    Memory does not depend on what the parameters are, so they are zeros.
    """
    device = jax.devices()[0]
    peaks: dict[str, int] = {}
    for step in sorted(compiled, key=lambda step: step.total):
        stats = device.memory_stats()
        if not stats or step.total > ROOM * stats["bytes_limit"]:
            break
        say(f"memory: running {step.recipe}")
        state = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), step.state)
        jax.block_until_ready(step.run(state, batch, jax.random.key(0)))
        peak = device.memory_stats()["peak_bytes_in_use"]
        if peak > stats["peak_bytes_in_use"]:
            peaks[step.recipe] = peak
    return peaks


def _rows(compiled: list[Compiled], peaks: dict[str, int]) -> list[Row]:
    baseline = compiled[0]
    return [_row(step, baseline, peaks.get(step.recipe), peaks.get(BASELINE)) for step in compiled]


def _row(step: Compiled, baseline: Compiled, peak: int | None, baseline_peak: int | None) -> Row:
    return {
        "recipe": step.recipe,
        "argument_bytes": step.arguments,
        "temporary_bytes": step.temporary,
        "total_bytes": step.total,
        "ratio_to_bf16": step.total / baseline.total,
        "temporary_ratio_to_bf16": step.temporary / baseline.temporary,
        "device_peak_bytes": peak,
        "device_peak_ratio_to_bf16": peak / baseline_peak if peak and baseline_peak else None,
        "bits_per_saved_element": step.bits,
    }

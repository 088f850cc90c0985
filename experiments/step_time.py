"""How much slower is an emulated NVFP4 step than a BF16 or FP32 one, on this machine?

Claim: at most 1.8 times the faster of the two, for `tiny` at 8 x 256 tokens on two CPU cores.
Command: python experiments/step_time.py [--model tiny --batch 8 --length 256 --rounds 15]
Cost: about two minutes, most of it compilation.
Method: whole training steps (loss, gradients, clipping, AdamW) of all variants on the same batch,
interleaved, medians. The baselines `bf16` and `fp32` are the model with no recipe at all, so they
owe nothing to our `dot_general`; `bf16 recipe` is the recipe that leaves everything in BF16.
Found: see BENCHMARKS.md.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import tyro
from flax import nnx

from nvfp4_jax import models
from nvfp4_jax.recipe import load_recipe
from nvfp4_jax.training.binding import precision_table
from nvfp4_jax.training.loss import cross_entropy_sum
from nvfp4_jax.training.optimizer import adamw, learning_rate_schedule
from nvfp4_jax.training.state import TrainState, abstract_model, assemble, initial_state
from nvfp4_jax.training.step import Program, make_step


@dataclass(frozen=True)
class Options:
    """What to time."""

    model: str = "tiny"
    batch: int = 8
    length: int = 256
    rounds: int = 15
    recipes: tuple[str, ...] = ("nvfp4", "bf16")


def random_batch(options: Options, vocabulary: int) -> dict[str, jax.Array]:
    """One microbatch of random tokens in two documents a row."""
    shape = (1, options.batch, options.length)
    tokens = jax.random.randint(jax.random.key(1), shape, 0, vocabulary)
    segments = jnp.broadcast_to(jnp.arange(options.length) * 2 // options.length + 1, shape)
    mask = jnp.ones(shape, jnp.float32)
    return {"tokens": tokens, "targets": tokens, "segment_ids": segments, "mask": mask}


def recipe_step(options: Options, config: models.HybridConfig, name: str) -> Callable:
    """The training step under a recipe."""
    model = abstract_model(config)
    table = precision_table(load_recipe(name), model, config.num_blocks)
    program = Program(config, nnx.graphdef(model))
    return make_step(program, table, adamw(), learning_rate_schedule(1e-3, 100, 10, 0.2))


def plain_step(config: models.HybridConfig, dtype) -> Callable:
    """The same step with the model as it comes, computing in `dtype`."""
    definition = nnx.graphdef(abstract_model(config, dtype))
    optimizer = adamw()

    def loss(parameters, batch):
        model = assemble(definition, parameters)
        hidden = models.apply_blocks(model, model.embed(batch["tokens"]), batch["segment_ids"])
        graph, head = nnx.split(model.head)
        return cross_entropy_sum(
            lambda head, x: nnx.merge(graph, head)(x),
            head,
            model.readout(hidden),
            batch["targets"],
            batch["mask"],
            vocabulary=config.vocabulary,
        ) / jnp.sum(batch["mask"])

    def step(state, batch, key):
        rows = {name: array[0] for name, array in batch.items()}
        value, grads = jax.value_and_grad(loss)(state.parameters, rows)
        updates, moments = optimizer.update(grads, state.optimizer, state.parameters)
        moved = jax.tree.map(lambda w, u: w - 1e-3 * u, state.parameters, updates)
        return TrainState(moved, moments, state.step + 1, state.skipped, state.skipped), value

    return step


def main(options: Options) -> None:
    """Compile every variant, run them in turns, and print medians and ratios."""
    config = models.preset(options.model)
    variants = {name: recipe_step(options, config, name) for name in options.recipes}
    variants = {f"{name} recipe": step for name, step in variants.items()}
    variants |= {"bf16": plain_step(config, jnp.bfloat16), "fp32": plain_step(config, jnp.float32)}
    batch, key = random_batch(options, config.vocabulary), jax.random.key(0)
    state = initial_state(config, adamw(), 0)
    compiled, seconds = {}, {name: [] for name in variants}
    for name, step in variants.items():
        start = time.perf_counter()
        compiled[name] = jax.jit(step).lower(state, batch, key).compile()
        print(f"{name:14} compiled in {time.perf_counter() - start:5.1f} s", flush=True)
    for round_number in range(options.rounds + 1):
        for name, run in compiled.items():
            start = time.perf_counter()
            jax.block_until_ready(run(state, batch, key))
            if round_number:
                seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    fastest = min(medians["bf16"], medians["fp32"])
    for name, median in medians.items():
        print(f"{name:14} {1e3 * median:8.1f} ms   {median / fastest:5.2f} of the faster baseline")


if __name__ == "__main__":
    main(tyro.cli(Options))

"""Which layer went bad first, found by running a batch again outside the hot path.

A number that is not finite spreads: from a layer's output to every later block and to the loss,
and from there to every gradient. So the search follows the order of computation: the parameters
themselves, then the outputs of the linear layers going forward, then the gradients going back,
from the head to the embedding. The first hit is where it began; all later ones are consequences.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from nvfp4_jax import models
from nvfp4_jax.recipe import layer_path
from nvfp4_jax.training.binding import Table, linears, make_bind
from nvfp4_jax.training.exact import OPTIONS
from nvfp4_jax.training.sharding import laid_out
from nvfp4_jax.training.state import Parameters, assemble
from nvfp4_jax.training.step import Arrays, Program, loss_sum


def first_bad_layer(
    program: Program, table: Table, parameters: Parameters, batch: Arrays, key: jax.Array
) -> str:
    """Where the first number that is not finite appears, in words.

    Args:
      program, table: as of the step that failed.
      parameters: before that step (which left them as they were).
      batch: (microbatches, rows, length).
      key: the step's key: the run's, folded with the step.
    """
    bad = next((p for p, w in sorted(parameters.items()) if not jnp.isfinite(w).all()), None)
    if bad:
        return f"the parameter {layer_path(bad)} is not finite itself"
    # blocks one by one, so that what is found has one name
    program = dataclasses.replace(program, scan=False)
    for index in range(batch["tokens"].shape[0]):
        part = {name: array[index] for name, array in batch.items()}
        with laid_out(program.mesh):
            where = _search(program, table, parameters, part, jax.random.fold_in(key, index))
        if where:
            return f"{where} (microbatch {index})"
    return "no layer: every gradient is finite, but their sum or norm exceeds FP32"


def _search(
    program: Program, table: Table, parameters: Parameters, batch: Arrays, key: jax.Array
) -> str | None:
    names, flags = _outputs(program, table, parameters, batch, key)
    for name, finite in zip(names, jax.device_get(flags), strict=True):
        if not finite:
            return f"the output of {name}, going forward"
    grads = jax.jit(
        jax.grad(lambda p: loss_sum(program, table, p, batch, key)), compiler_options=OPTIONS
    )(parameters)
    finite = {layer_path(path): bool(jnp.isfinite(grad).all()) for path, grad in grads.items()}
    for name in ["final_norm", "head", *reversed(names), "embedding"]:
        bad = [path for path, ok in finite.items() if not ok and path.startswith(name + "/")]
        if bad:
            return f"the gradient of {bad[0]}, going back"
    bad = next((path for path, ok in finite.items() if not ok), None)
    return f"the gradient of {bad}" if bad else None


def _outputs(
    program: Program, table: Table, parameters: Parameters, batch: Arrays, key: jax.Array
) -> tuple[list[str], list[jax.Array]]:
    """The linear layers in the order in which they run, and whether each one's output is finite."""
    names: list[str] = []

    def forward(parameters: Parameters, batch: Arrays, key: jax.Array) -> list[jax.Array]:
        model = assemble(program.definition, parameters)
        names.clear()
        flags: list[jax.Array] = []
        bind = make_bind(table, key)

        def watch(block: Any, indices: tuple[int, ...], repeat: jax.Array | None) -> None:
            bind(block, indices, repeat)
            for name, linear in linears(block):
                _watch(linear, f"blocks_{indices[0]}/{name}", names, flags)

        hidden = model.embed(batch["tokens"])
        hidden = models.apply_blocks(model, hidden, batch["segment_ids"], bind=watch)
        _watch(model.head, "head", names, flags)
        model.head(model.readout(hidden))
        return flags

    flags = jax.jit(forward, compiler_options=OPTIONS)(parameters, batch, key)
    return names, flags


def _watch(linear: nnx.Linear, name: str, names: list[str], flags: list[jax.Array]) -> None:
    """Note, whenever `linear` multiplies, its name and whether the product is finite."""
    multiply = linear.dot_general

    def watched(*args: Any, **options: Any) -> jax.Array:
        product = multiply(*args, **options)
        names.append(name)
        flags.append(jnp.isfinite(product).all())
        return product

    linear.dot_general = watched

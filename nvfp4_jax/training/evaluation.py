"""The loss on held-out text: a pure function, microbatch by microbatch as in training.

    parameters, batch, key  ->  sum of the loss in nats, number of targets

An operand's amax is that of a microbatch, as in a step of training, and no more of a batch is in
memory at once than there.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from nvfp4_jax.training.binding import Table, weight_amaxes
from nvfp4_jax.training.sharding import laid_out
from nvfp4_jax.training.state import Parameters, assemble
from nvfp4_jax.training.step import Arrays, Program, loss_sum


def make_evaluation(
    program: Program, table: Table
) -> Callable[[Parameters, Arrays, jax.Array], tuple[jax.Array, jax.Array]]:
    """(sum of the loss in nats, targets), FP32, of (microbatches, rows, length); not jitted."""

    def evaluate(
        parameters: Parameters, batch: Arrays, key: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        with laid_out(program.mesh):
            total = _total(program, table, parameters, batch, key)
        return total, jnp.sum(batch["mask"], dtype=jnp.float32)

    return evaluate


def _total(
    program: Program, table: Table, parameters: Parameters, batch: Arrays, key: jax.Array
) -> jax.Array:
    count = batch["tokens"].shape[0]
    if count == 1:
        rows = {name: array[0] for name, array in batch.items()}
        return loss_sum(program, table, parameters, rows, key)
    amaxes = weight_amaxes(table, assemble(program.definition, parameters))

    def add(total: jax.Array, xs: tuple[Arrays, jax.Array]) -> tuple[jax.Array, None]:
        rows, index = xs
        key_here = jax.random.fold_in(key, index)
        return total + loss_sum(program, table, parameters, rows, key_here, amaxes), None

    start = jnp.zeros((), jnp.float32)
    return jax.lax.scan(add, start, (batch, jnp.arange(count, dtype=jnp.uint32)))[0]

"""One step of training: a pure function, and what it is made of.

    state, batch, key  ->  state, measured

Master weights, their gradients, the sum of the gradients over microbatches and the optimizer are
FP32; activations and the operands of every product are BF16 or less, as the table of precisions
says. A loss or gradient that is not finite leaves parameters and optimizer as they were: the step
counts, but it did not happen.

The gradient is that of the mean over all targets of the batch. Their number is known before the
first microbatch runs, so each already carries the final scale and they need only be added.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from nvfp4_jax import models
from nvfp4_jax.keys import layer_key
from nvfp4_jax.training.binding import (
    Amaxes,
    Features,
    Gathered,
    Table,
    bind_linear,
    block_labels,
    make_bind,
    weight_amaxes,
)
from nvfp4_jax.training.gathering import embed
from nvfp4_jax.training.loss import LOGITS_IN_MEMORY, cross_entropy_sum
from nvfp4_jax.training.ordered import feature_parts, ordered_gradients, whole
from nvfp4_jax.training.sharding import gathered_sharding, laid_out, parameter_sharding
from nvfp4_jax.training.state import Parameters, TrainState, assemble

Arrays = dict[str, jax.Array]


@dataclass(frozen=True)
class Program:
    """What is fixed while a step is traced.

    Attributes:
      config: the model's shape.
      definition: the model without its parameters.
      remat: what is kept for the backward pass, as in `models.apply_blocks`.
      scan: whether blocks that repeat are traced once.
      mesh: the devices that share the work; None for one.
      gather_packed: whether quantized weights stored in parts travel as codes.
      sum_parts: of a microbatch, whose gradients are added in one order; None for any order.
      feature_parts: of the features inside a layer, likewise; with `sum_parts` alone.
    """

    config: models.HybridConfig
    definition: nnx.GraphDef
    remat: models.Remat = "none"
    scan: bool = False
    mesh: Mesh | None = None
    gather_packed: bool = False
    sum_parts: int | None = None
    feature_parts: int = 1


class Measured(NamedTuple):
    """What a step tells: FP32 scalars, but for the two counters of skipped steps."""

    loss: jax.Array
    grad_norm: jax.Array
    learning_rate: jax.Array
    skipped: jax.Array
    skipped_in_a_row: jax.Array


def loss_sum(
    program: Program,
    table: Table,
    parameters: Parameters,
    batch: Arrays,
    key: jax.Array,
    amaxes: Amaxes | None = None,
) -> jax.Array:
    """The sum of the cross-entropy over a microbatch's unmasked targets, in nats, FP32."""
    model = assemble(program.definition, parameters)
    repeats = find_repeats(program, table)
    hidden = models.apply_blocks(
        model,
        _embedded(program, model, batch["tokens"]),
        batch["segment_ids"],
        bind=make_bind(table, key, amaxes, _gathered(program), _features(program)),
        repeats=repeats,
        remat=program.remat,
    )
    head_precision = dict(table)["head"]
    head_key, head_amax = layer_key(key, "head"), (amaxes or {}).get("head")
    bind_linear(
        model.head,
        head_precision,
        head_key,
        head_amax,
        "head",
        together=program.sum_parts is not None,
    )
    # a quantized head has one amax for all its tokens, so they cannot come in chunks
    in_memory = batch["targets"].size * program.config.vocabulary
    return cross_entropy_sum(
        *_function_of(model.head),
        model.readout(hidden),
        batch["targets"],
        batch["mask"],
        vocabulary=program.config.vocabulary,
        logits_in_memory=in_memory if head_precision.quantized else LOGITS_IN_MEMORY,
        mesh=None if head_precision.quantized else program.mesh,
    )


def _embedded(program: Program, model: models.Hybrid, tokens: jax.Array) -> jax.Array:
    if program.mesh is None:
        return model.embed(tokens)
    table = model.embedding
    return embed(table.weight[...], tokens, table.dtype, program.mesh)


def _gathered(program: Program) -> Gathered | None:
    if program.mesh is None or not program.gather_packed:
        return None
    return partial(gathered_sharding, program.mesh)


def _features(program: Program) -> Features | None:
    if program.sum_parts is None:
        return None
    return partial(feature_parts, parts=program.feature_parts)


def _function_of(linear: nnx.Linear) -> tuple[Callable[[Any, jax.Array], jax.Array], nnx.State]:
    """(f, weights) with f(weights, x) what `linear(x)` is."""
    graph, weights = nnx.split(linear)
    return lambda weights, x: nnx.merge(graph, weights)(x), weights


def find_repeats(program: Program, table: Table) -> tuple[models.Repeat, ...]:
    """The runs of blocks, equal in kind and in precision, that may be scanned."""
    if not program.scan:
        return ()
    return models.find_repeats(block_labels(table, program.config.blocks))


def gradients(
    program: Program, table: Table, parameters: Parameters, batch: Arrays, key: jax.Array
) -> tuple[jax.Array, Parameters]:
    """(mean loss, its FP32 gradients) of a batch (microbatches, rows, length)."""
    targets = jnp.maximum(jnp.sum(batch["mask"], dtype=jnp.float32), 1.0)
    count = batch["tokens"].shape[0]
    # Weights do not change between the microbatches of a step, and XLA does not see it.
    amaxes = weight_amaxes(table, assemble(program.definition, parameters)) if count > 1 else None

    def one(microbatch: Arrays, index: jax.Array) -> tuple[jax.Array, Parameters]:
        key_here = jax.random.fold_in(key, index)

        def loss(program: Program, parameters: Parameters, rows: Arrays) -> jax.Array:
            return loss_sum(program, table, parameters, rows, key_here, amaxes) / targets

        value, grads = _value_and_grad(program, loss, parameters, microbatch)
        return value, _as_stored(program, grads)

    if count == 1:
        return one({name: array[0] for name, array in batch.items()}, jnp.uint32(0))

    def add(total: Any, xs: tuple[Arrays, jax.Array]) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, one(*xs)), None

    zeros = (jnp.zeros((), jnp.float32), jax.tree.map(jnp.zeros_like, parameters))
    return jax.lax.scan(add, zeros, (batch, jnp.arange(count, dtype=jnp.uint32)))[0]


def _value_and_grad(
    program: Program, loss: Callable[..., jax.Array], parameters: Parameters, batch: Arrays
) -> tuple[jax.Array, Parameters]:
    if program.sum_parts is None:
        return jax.value_and_grad(partial(loss, program))(parameters, batch)
    alone = partial(loss, dataclasses.replace(program, mesh=None))
    return ordered_gradients(
        alone, parameters, batch, program.sum_parts, program.mesh, program.feature_parts
    )


def _as_stored(program: Program, grads: Parameters) -> Parameters:
    """Gradients laid out as their weights: summed over devices, each keeps what it will update."""
    if program.mesh is None:
        return grads
    layouts = {p: parameter_sharding(program.mesh, p, g.shape) for p, g in grads.items()}
    return jax.lax.with_sharding_constraint(grads, layouts)


def make_gradients(
    program: Program, table: Table
) -> Callable[[Parameters, Arrays, jax.Array], tuple[jax.Array, Parameters]]:
    """(mean loss, its gradients) of a batch (microbatches, rows, length); not jitted."""

    def of_batch(
        parameters: Parameters, batch: Arrays, key: jax.Array
    ) -> tuple[jax.Array, Parameters]:
        with laid_out(program.mesh if program.sum_parts is None else None):
            return gradients(program, table, parameters, batch, key)

    return of_batch


def make_step(
    program: Program,
    table: Table,
    optimizer: optax.GradientTransformationExtraArgs,
    schedule: optax.Schedule,
) -> Callable[[TrainState, Arrays, jax.Array], tuple[TrainState, Measured]]:
    """The step under one table of precisions; not jitted.

    The function returned takes the state, a batch (microbatches, rows, length) and the run's key.
    """

    of_batch = make_gradients(program, table)

    def step(state: TrainState, batch: Arrays, key: jax.Array) -> tuple[TrainState, Measured]:
        key = jax.random.fold_in(key, state.step)
        loss, grads = of_batch(state.parameters, batch, key)
        norm = optax.tree.norm(grads if program.sum_parts is None else whole(grads, program.mesh))
        rate = jnp.asarray(schedule(state.step), jnp.float32)
        updates, moments = optimizer.update(grads, state.optimizer, state.parameters, norm=norm)
        moved = jax.tree.map(lambda w, u: w - rate * u, state.parameters, updates)
        finite = jnp.isfinite(loss) & jnp.isfinite(norm)
        parameters, moments = jax.tree.map(
            lambda new, old: jnp.where(finite, new, old),
            (moved, moments),
            (state.parameters, state.optimizer),
        )
        skipped = state.skipped + jnp.where(finite, 0, 1)
        in_a_row = jnp.where(finite, 0, state.skipped_in_a_row + 1)
        state = TrainState(parameters, moments, state.step + 1, skipped, in_a_row)
        return state, Measured(loss, norm, rate, skipped, in_a_row)

    return step

"""A training step on a mesh from names alone: no text, no run, no folder.

For whoever measures the step that `nvfp4 train` would run: loss, gradients, clipping and AdamW, on
random tokens, laid out over the devices as a run lays it out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from nvfp4_jax import models
from nvfp4_jax.recipe import load_recipe
from nvfp4_jax.training import exact
from nvfp4_jax.training.binding import Table, precision_table
from nvfp4_jax.training.config import at_least
from nvfp4_jax.training.errors import UsageError
from nvfp4_jax.training.mesh import make_mesh, parse_mesh
from nvfp4_jax.training.model_choice import choose_model
from nvfp4_jax.training.optimizer import adamw, learning_rate_schedule
from nvfp4_jax.training.overlap import compiler_options
from nvfp4_jax.training.parts import check_parts
from nvfp4_jax.training.prepare import check_mesh, scans
from nvfp4_jax.training.proof import batch_shapes
from nvfp4_jax.training.sharding import batch_sharding, placed_shapes, sharding, state_shardings
from nvfp4_jax.training.state import TrainState, abstract_model, initial_state
from nvfp4_jax.training.step import Arrays, Program, loss_sum, make_gradients, make_step


@dataclass(frozen=True, kw_only=True)
class LoneStep:
    """What decides a step: its arithmetic, its shapes, and where it runs.

    Attributes:
      model: a preset or a JSON file with the fields of a HybridConfig.
      recipe: a recipe's name or TOML file.
      batch: rows a step, of all devices together.
      length: tokens a row.
      documents: packed into a row, of equal length.
      remat, scan, mesh, sum_parts, feature_parts: as in training.
    """

    model: str
    recipe: str
    batch: int
    length: int
    documents: int = 2
    remat: Literal["none", "block", "linear_inputs"] = "none"
    scan: Literal["auto", "on", "off"] = "auto"
    mesh: str | None = None
    sum_parts: int | None = None
    feature_parts: int | None = None
    microbatches: ClassVar[int] = 1
    gather: ClassVar[str] = "auto"

    def check(self) -> Mesh:
        """The mesh, once every number has been found possible.

        Raises:
          UsageError: a number below 1, too few devices, or rows that they cannot share.
        """
        for name in ("batch", "length", "documents"):
            at_least(self, name, 1)
        shape = parse_mesh(self.mesh)
        batch: Any = self  # has what it asks a run's choices for
        check_mesh(shape, batch)
        return make_mesh(shape)


def compile_step(
    step: LoneStep, options: Mapping[str, bool | int | str] | None = None
) -> jax.stages.Compiled:
    """The executable: state, batch, key -> state, measured. The state is given up.

    Args:
      step: which.
      options: of the compiler, beside those for exact numbers; left out, those for overlap.

    Raises:
      UsageError: a choice that cannot be honoured.
      RecipeError: a recipe that cannot be read or does not fit the model.
    """
    mesh = step.check()
    config, program, table = _program(step, mesh)
    optimizer = adamw()
    run = make_step(program, table, optimizer, learning_rate_schedule(1e-3, 1000, 10, 0.2))
    shapes = jax.eval_shape(lambda: initial_state(config, optimizer, 0))
    layouts = state_shardings(mesh, shapes)
    jitted = jax.jit(run, donate_argnums=0, out_shardings=(layouts, sharding(mesh)))
    lowered = jitted.lower(placed_shapes(shapes, layouts), *_batch_and_key(step, mesh))
    chosen = compiler_options(mesh) if options is None else dict(options)
    return lowered.compile(compiler_options=exact.options(step.sum_parts) | chosen)


def compile_gradients(step: LoneStep) -> jax.stages.Compiled:
    """Parameters, batch, key -> (mean loss, its gradients, which lie as the parameters do)."""
    mesh = step.check()
    config, program, table = _program(step, mesh)
    shapes = jax.eval_shape(lambda: initial_state(config, adamw(), 0)).parameters
    layouts = state_shardings(mesh, shapes)
    run = jax.jit(make_gradients(program, table), out_shardings=(sharding(mesh), layouts))
    lowered = run.lower(placed_shapes(shapes, layouts), *_batch_and_key(step, mesh))
    return lowered.compile(compiler_options=exact.options(step.sum_parts) | compiler_options(mesh))


def compile_loss(step: LoneStep) -> jax.stages.Compiled:
    """Parameters, batch, key -> the loss of the first step alone, in the memory of inference.

    Raises:
      UsageError: as `compile_step`; parts are for what gradients are computed with.
    """
    if step.sum_parts is not None:
        raise UsageError("--sum-parts: a loss alone is summed in any order; leave it out")
    mesh = step.check()
    config, program, table = _program(step, mesh)

    def loss(parameters: Any, batch: Arrays, key: jax.Array) -> jax.Array:
        key = jax.random.fold_in(jax.random.fold_in(key, 0), 0)  # of step 0, microbatch 0
        rows = {name: array[0] for name, array in batch.items()}
        return loss_sum(program, table, parameters, rows, key) / jnp.sum(
            batch["mask"], dtype=jnp.float32
        )

    shapes = jax.eval_shape(lambda: initial_state(config, adamw(), 0))
    placed = placed_shapes(shapes, state_shardings(mesh, shapes))
    lowered = jax.jit(loss).lower(placed.parameters, *_batch_and_key(step, mesh))
    return lowered.compile(compiler_options=exact.OPTIONS)


def first_state(step: LoneStep) -> TrainState:
    """Freshly drawn parameters and moments, each device with its part."""
    return compile_first_state(step)()


def compile_first_state(step: LoneStep) -> jax.stages.Compiled:
    """The executable that draws it."""
    mesh, config = step.check(), choose_model(step.model)

    def draw() -> TrainState:
        return initial_state(config, adamw(), 0)

    layouts = state_shardings(mesh, jax.eval_shape(draw))
    return jax.jit(draw, out_shardings=layouts).lower().compile()


def random_batch(step: LoneStep) -> Arrays:
    """Random tokens (1, rows, length), every row cut into documents of equal length."""
    vocabulary, shape = choose_model(step.model).vocabulary, (1, step.batch, step.length)

    def draw() -> Arrays:
        tokens = jax.random.randint(jax.random.key(1), shape, 0, vocabulary)
        segments = jnp.arange(step.length) * step.documents // step.length + 1
        segments = jnp.broadcast_to(segments, shape)
        mask = jnp.ones(shape, bool)
        return {"tokens": tokens, "targets": tokens, "segment_ids": segments, "mask": mask}

    return jax.jit(draw, out_shardings=batch_sharding(step.check()))()


def run_key(step: LoneStep) -> jax.Array:
    """The key that a run with seed 0 has, on every device."""
    return jax.device_put(jax.random.key(0), sharding(step.check()))


def _program(step: LoneStep, mesh: Mesh) -> tuple[models.HybridConfig, Program, Table]:
    config = choose_model(step.model)
    model = abstract_model(config)
    table = precision_table(load_recipe(step.recipe), model, config.num_blocks)
    looped = scans(step.scan, config)
    check_parts(step, parse_mesh(step.mesh), model, [table])
    program = Program(
        config,
        nnx.graphdef(model),
        remat=step.remat,
        scan=looped,
        mesh=mesh if mesh.size > 1 or step.sum_parts else None,
        sum_parts=step.sum_parts,
        feature_parts=step.feature_parts or 1,
    )
    return config, program, table


def _batch_and_key(step: LoneStep, mesh: Mesh) -> tuple[Any, jax.ShapeDtypeStruct]:
    key = jax.eval_shape(lambda: jax.random.key(0))
    placed = jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=sharding(mesh))
    return batch_shapes(mesh, 1, step.batch, step.length), placed

"""The training step as `nvfp4 train` would run it, compiled for GPUs that are not here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
from flax import nnx

from nvfp4_jax.compile_for import Memory, compile_for, memory_of, mesh_of
from nvfp4_jax.planning.candidate import Candidate, Job
from nvfp4_jax.planning.machine import linked
from nvfp4_jax.training.binding import precision_table
from nvfp4_jax.training.exact import OPTIONS
from nvfp4_jax.training.mesh import make_mesh
from nvfp4_jax.training.optimizer import adamw, learning_rate_schedule
from nvfp4_jax.training.overlap import compiler_options
from nvfp4_jax.training.prepare import gathers_packed, scans
from nvfp4_jax.training.proof import batch_shapes
from nvfp4_jax.training.sharding import placed_shapes, sharding, state_shardings
from nvfp4_jax.training.state import TrainState, abstract_model, initial_state
from nvfp4_jax.training.step import Program, make_step

# What comes after the program is settled, machine code, is made without optimization: nothing
# runs, and it took most of the time. Nor are ways to run a product tried out, which without a GPU
# is compiling one after the other until one compiles: the first does, and is taken here too.
QUICKLY: dict[str, bool | int | str] = {
    "xla_gpu_autotune_level": 0,
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
    "xla_gpu_disable_gpuasm_optimizations": True,
}


@dataclass(frozen=True)
class CompiledStep:
    """The step of one candidate.

    Attributes:
      state: shapes, dtypes and layouts of what it trains.
      memory: of each device, as XLA planned it.
      text: the optimized program of each device.
    """

    state: TrainState
    memory: Memory
    text: str


def compile_step(job: Job, candidate: Candidate) -> CompiledStep:
    """Compile a job's first step; nothing is allocated or run.

    Raises:
      ValueError: the compiler for this GPU is not installed.
      RecipeError: the recipe does not fit the model.
    """
    devices = mesh_of(linked(job.gpu), {"data": candidate.mesh.size}).devices.flat
    mesh = make_mesh(candidate.mesh, list(devices))
    model, optimizer = abstract_model(job.model), adamw()
    table = precision_table(job.recipe.at(0, 1000), model, job.model.num_blocks)
    program = Program(
        job.model,
        nnx.graphdef(model),
        candidate.remat,
        scans(job.scan, job.model, job.steps, mesh.size),
        mesh if mesh.size > 1 else None,
        gathers_packed(job.gather, mesh),
    )
    step = make_step(program, table, optimizer, learning_rate_schedule(1e-3, 1000, 10, 0.2))
    state, layouts = _state(job, mesh)
    key = jax.eval_shape(lambda: jax.random.key(0))
    compiled = compile_for(
        mesh,
        step,
        state,
        batch_shapes(mesh, candidate.microbatches, job.batch, job.length),
        key,
        donate_argnums=0,
        out_shardings=(layouts, sharding(mesh)),
        compiler_options=OPTIONS | compiler_options(mesh) | QUICKLY,
    )
    text = compiled.as_text()
    assert text is not None  # XLA's GPU compiler tells
    return CompiledStep(state, memory_of(compiled), text)


def _state(job: Job, mesh: jax.sharding.Mesh) -> tuple[TrainState, Any]:
    shapes = jax.eval_shape(lambda: initial_state(job.model, adamw(), 0))
    layouts = state_shardings(mesh, shapes)
    return placed_shapes(shapes, layouts), layouts

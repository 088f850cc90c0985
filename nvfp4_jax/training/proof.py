"""What the compiled step of a run really does, and what follows if it is not the recipe.

    compiled  ->  its text  ->  compiled/proof: every GEMM of every layer, what multiplies it,
                                whether its operands are rounded  ->  WORKDIR/compiled.txt, .json

`prove_step` compiles the step for any GPU, here or not, with shapes in place of arrays. A run does
the same with the executable that it then runs; the first is judged before anything is written, and
one whose table of precisions comes into force later, by a schedule, when it is compiled.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from nvfp4_jax import models
from nvfp4_jax.compile_for import compile_for, mesh_of
from nvfp4_jax.compiled.proof import Proof, prove
from nvfp4_jax.compiled.report import as_json, as_text, fallback_lines
from nvfp4_jax.kernels.select import best, fallback, select_native
from nvfp4_jax.operands import emulated
from nvfp4_jax.precision import GEMMS
from nvfp4_jax.recipe import Recipe
from nvfp4_jax.training.binding import Table, precision_table
from nvfp4_jax.training.config import at_least, check_microbatches
from nvfp4_jax.training.distributed import is_first
from nvfp4_jax.training.errors import UsageError
from nvfp4_jax.training.exact import OPTIONS
from nvfp4_jax.training.files import write_atomically
from nvfp4_jax.training.mesh import MeshShape, make_mesh
from nvfp4_jax.training.optimizer import adamw, learning_rate_schedule
from nvfp4_jax.training.prepare import Phase, Run, scans
from nvfp4_jax.training.sharding import batch_sharding
from nvfp4_jax.training.state import abstract_model, initial_state
from nvfp4_jax.training.step import Program, make_step
from nvfp4_jax.training.workdir import make_folder


class StepShape(NamedTuple):
    """What decides the shapes and the loops of a step, as `training.config` has it."""

    batch: int = 8
    length: int = 256
    microbatches: int = 1
    remat: models.Remat = "none"
    scan: Literal["auto", "on", "off"] = "auto"


def prove_step(
    config: models.HybridConfig,
    recipe: Recipe,
    *,
    gpu: str | None = None,
    shape: StepShape = StepShape(),  # noqa: B008
) -> Proof:
    """Compile the whole training step and read what it does; nothing is allocated or run.

    Args:
      config: the model.
      recipe: as loaded; the step is the first one of its schedule.
      gpu: a name of `gpus.GPUS`; the device at hand if left out.
      shape: of the batch, and how the blocks are run.

    Raises:
      ValueError: no such GPU, the compiler for it is not installed, or numbers that are no shape.
      RecipeError: the recipe does not fit the model.
    """
    _check(shape)
    model, optimizer = abstract_model(config), adamw()
    table = precision_table(recipe.at(0, 1000), model, config.num_blocks)
    program = Program(config, nnx.graphdef(model), shape.remat, scans(shape.scan, config))
    step = make_step(program, table, optimizer, learning_rate_schedule(1e-3, 1000, 10, 0.2))
    state = jax.eval_shape(lambda: initial_state(config, optimizer, 0))
    key = jax.eval_shape(lambda: jax.random.key(0))
    mesh = make_mesh() if gpu is None else mesh_of(gpu, MeshShape().sizes)
    batch = batch_shapes(mesh, shape.microbatches, shape.batch, shape.length)
    arguments, notes = (state, batch, key), rule_notes(recipe, model, config.num_blocks)
    if gpu is None:
        lowered = jax.jit(step, donate_argnums=0).lower(*arguments)
        compiled = lowered.compile(compiler_options=OPTIONS)
        return read_proof(compiled, table, mesh, notes)
    compiled = compile_for(mesh, step, *arguments, donate_argnums=0, compiler_options=OPTIONS)
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        return read_proof(compiled, table, mesh, notes)


def _check(shape: StepShape) -> None:
    for name in ("batch", "length", "microbatches"):
        at_least(shape, name, 1)
    check_microbatches(shape)


def read_proof(
    compiled: jax.stages.Compiled, table: Table, mesh: Mesh, notes: tuple[str, ...] = ()
) -> Proof:
    """The proof of an executable, in the view of the device that it is for."""
    text = compiled.as_text()
    assert text is not None  # CPUs and GPUs tell
    name, reason = best()
    return prove(
        text,
        table,
        device=mesh.devices.flat[0].device_kind,
        implementation=f"{name} ({reason})" if reason else name,
        emulated=_emulated(table),
        notes=(*notes, *_quantizer_notes(table)),
    )


def batch_shapes(
    mesh: Mesh, microbatches: int, batch: int, length: int
) -> dict[str, jax.ShapeDtypeStruct]:
    """A step's batch as shapes: (microbatches, rows, length), laid out as training does."""
    layout = batch_sharding(mesh)
    shape = (microbatches, batch // microbatches, length)
    dtypes = {"tokens": jnp.int32, "targets": jnp.int32, "segment_ids": jnp.int32, "mask": bool}
    return {
        name: jax.ShapeDtypeStruct(shape, dtype, sharding=layout) for name, dtype in dtypes.items()
    }


def rule_notes(recipe: Recipe, model: nnx.Module, num_blocks: int) -> tuple[str, ...]:
    """The rules that decide no layer; those that match none are refused before."""
    layers = recipe.explain(model, num_blocks=num_blocks).layers
    deciding = {layer.rule for layer in layers}
    idle = [rule for rule in recipe.rules if rule.number not in deciding]
    return tuple(f"rule {rule.number} ({rule.text}) decides no layer" for rule in idle)


def write_or_refuse(proof: Proof, run: Run, start: int) -> None:
    """Write the proof of the step in force from `start` on, or refuse it and write nothing.

    Raises:
      UsageError: a GEMM that is not what the recipe says, and fallbacks are not allowed.
    """
    if proof.fallbacks and not run.config.allow_fallback:
        raise UsageError(
            f"the compiled step does not do what {run.recipe.name} says on {proof.device}\n"
            f"{fallback_lines(proof, most=5)}\n"
            "change the recipe to what is meant, or train so all the same by --allow-fallback "
            "(nvfp4 explain --compiled shows every layer)"
        )
    if not is_first():
        return
    make_folder(run.config.workdir)
    stem = "compiled" if start == 0 else f"compiled-from-{start}"
    write_atomically(run.config.workdir / f"{stem}.txt", as_text(proof) + "\n")
    write_atomically(run.config.workdir / f"{stem}.json", as_json(proof) + "\n")


def judge_of(run: Run) -> Callable[[Phase, jax.stages.Compiled], None]:
    """What is done with every executable of the step before it runs."""
    notes = rule_notes(run.recipe, run.model, run.program.config.num_blocks)

    def judge(phase: Phase, compiled: jax.stages.Compiled) -> None:
        write_or_refuse(read_proof(compiled, phase.table, run.mesh, notes), run, phase.start)

    return judge


def _emulated(table: Table) -> dict | None:
    """(precision, GEMM) -> why it is not on 4-bit codes; None where no native kernel is chosen."""
    if select_native(None) is None:
        return None
    precisions = {precision for _, precision in table}
    return {(p, gemm): emulated(p, gemm, None) for p in precisions for gemm in GEMMS}


def _quantizer_notes(table: Table) -> tuple[str, ...]:
    quantizers = {q for _, precision in table for q in precision.quantizers}
    told = [(q, fallback(q)) for q in sorted(quantizers, key=str)]
    return tuple(f"{q} is quantized in plain XLA: {reason}" for q, reason in told if reason)

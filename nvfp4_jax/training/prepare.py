"""From choices to everything a run needs; whatever can be wrong with them is found here.

Nothing is written and no parameter is allocated: a run that is refused leaves no trace.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import flax
import jax
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh

from nvfp4_jax import models
from nvfp4_jax.recipe import Recipe, load_recipe
from nvfp4_jax.training.binding import Table, packs_a_weight, precision_table
from nvfp4_jax.training.config import TrainConfig
from nvfp4_jax.training.corpus import AnyCorpus, load_corpus
from nvfp4_jax.training.errors import UsageError
from nvfp4_jax.training.mesh import MeshShape, make_mesh, parse_mesh
from nvfp4_jax.training.model_choice import check_vocabulary, choose_model, describe_model
from nvfp4_jax.training.optimizer import adamw, learning_rate_schedule
from nvfp4_jax.training.parts import check_parts
from nvfp4_jax.training.sharding import gathered_sharding
from nvfp4_jax.training.state import abstract_model
from nvfp4_jax.training.step import Program

SCAN_FROM_BLOCKS = 24  # fewer compile quickly enough, and run faster unrolled
SCAN_BELOW_STEPS = 1000  # 71 s of compilation pay for 65 ms a step (1b on an H100)


@dataclass(frozen=True)
class Phase:
    """A stretch of the run under one recipe.

    Attributes:
      start: its first step, from 0.
      table: the precisions to train in.
      evaluation: the precisions to evaluate in.
    """

    start: int
    table: Table
    evaluation: Table


@dataclass(frozen=True)
class Run:
    """A run about to begin: the choices and what they amount to."""

    config: TrainConfig
    recipe: Recipe
    corpus: AnyCorpus
    program: Program
    model: nnx.Module
    phases: tuple[Phase, ...]
    optimizer: optax.GradientTransformationExtraArgs
    schedule: optax.Schedule
    mesh: Mesh

    def phase(self, step: int) -> Phase:
        """The phase in force at a step, counted from 0."""
        return next(p for p in reversed(self.phases) if p.start <= step)

    def describe(self) -> dict:
        """What run this is, as JSON: what a checkpoint carries and `config.json` shows."""
        return {
            "model": describe_model(self.program.config),
            "training": self.config.decisive(),
            "corpus": {
                "name": self.corpus.name,
                "fingerprint": self.corpus.fingerprint,
                "bytes_per_token": self.corpus.bytes_per_token,
            },
            "recipe": {
                "name": self.recipe.name,
                "digest": self.recipe.digest,
                "text": self.recipe.text,
            },
            "versions": {"jax": jax.__version__, "flax": flax.__version__},
        }


def prepare(config: TrainConfig, corpus: AnyCorpus | None = None) -> Run:
    """Check every choice and gather what the run needs.

    Args:
      config: the choices.
      corpus: what `config.data` names, if it has been read already.

    Raises:
      UsageError: a choice that cannot be honoured.
      RecipeError: a recipe that is wrong in itself or does not fit the model.
    """
    config.check()
    shape = parse_mesh(config.mesh)
    check_mesh(shape, config)
    mesh = make_mesh(shape)
    model_config = choose_model(config.model)
    recipe = load_recipe(config.recipe)
    corpus = corpus or load_corpus(config.data)
    check_vocabulary(model_config, config.model, corpus)
    model = abstract_model(model_config)
    phases = find_phases(recipe, model, model_config.num_blocks, config.steps)
    check_parts(config, shape, model, (phase.table for phase in phases))
    _refuse_to_pack_nothing(config, model, phases, mesh)
    _refuse_to_do_nothing(recipe, phases, config)
    return Run(
        config=config,
        recipe=recipe,
        corpus=corpus,
        program=Program(
            model_config,
            nnx.graphdef(model),
            remat=config.remat,
            scan=scans(config.scan, model_config, config.steps, mesh.size),
            mesh=mesh if mesh.size > 1 or config.sum_parts else None,
            gather_packed=config.sum_parts is None and gathers_packed(config.gather, mesh),
            sum_parts=config.sum_parts,
            feature_parts=config.feature_parts or 1,
        ),
        model=model,
        phases=phases,
        optimizer=adamw(),
        schedule=learning_rate_schedule(
            config.learning_rate, config.steps, config.warmup_steps, config.decay_fraction
        ),
        mesh=mesh,
    )


def check_mesh(mesh: MeshShape, batch: Any) -> None:
    """Raise a `UsageError` for rows or tokens that the devices cannot share evenly.

    `batch` has `batch`, `microbatches` and `length`, as a `TrainConfig` does.
    """
    rows = batch.batch // batch.microbatches
    if rows % mesh.row_shards:
        raise UsageError(
            f"--mesh {mesh} cuts the rows of a batch over data x fsdp = {mesh.row_shards} devices, "
            f"and a microbatch has {rows} (--batch {batch.batch}, --microbatches "
            f"{batch.microbatches}); make that a multiple of {mesh.row_shards}"
        )
    if batch.length % (mesh.sequence * mesh.tensor):
        raise UsageError(
            f"--mesh {mesh} cuts the tokens of a row over sequence x tensor = "
            f"{mesh.sequence * mesh.tensor} devices, which does not divide --length {batch.length}"
        )


def gathers_packed(gather: Literal["auto", "packed", "bf16"], mesh: Mesh) -> bool:
    """Whether quantized weights that are stored in parts travel as 4-bit codes.

    Left to us (`auto`), they do between hosts. Within one the network is fast, and unpacking the
    whole weight on every device for each use costs more than the bytes.
    """
    if gather == "packed" and mesh.shape["fsdp"] == 1:
        raise UsageError(
            "--gather packed: no weight is stored in parts; give --mesh fsdp=N, or leave it out"
        )
    if gather != "auto":
        return gather == "packed"
    rows = np.moveaxis(mesh.devices, mesh.axis_names.index("fsdp"), -1)
    sharing = rows.reshape(-1, rows.shape[-1])[0]
    # GPUs of one host have one slice_index, whether it runs a process for each or one for all.
    several = jax.process_count() > 1
    host = "slice_index" if several and hasattr(sharing[0], "slice_index") else "process_index"
    return len({getattr(device, host) for device in sharing}) > 1


def scans(
    scan: Literal["auto", "on", "off"],
    model: models.HybridConfig,
    steps: int = 0,
    devices: int = 1,
) -> bool:
    """Whether repeated blocks are traced once.

    Left to us (`auto`), a deep model is: on several devices, where a loop also keeps the weights
    of one repeat at a time gathered, and on one for runs too short to win back the compilation.
    """
    if scan != "auto":
        return scan == "on"
    short = steps < SCAN_BELOW_STEPS
    return model.num_blocks >= SCAN_FROM_BLOCKS and (short or devices > 1)


def _refuse_to_pack_nothing(
    config: TrainConfig, model: nnx.Module, phases: tuple[Phase, ...], mesh: Mesh
) -> None:
    layout = partial(gathered_sharding, mesh)
    if config.gather != "packed" or any(packs_a_weight(p.table, model, layout) for p in phases):
        return
    raise UsageError(
        f"--gather packed: under --recipe {config.recipe} and --mesh {config.mesh} no weight that "
        "is stored in parts is the same NVFP4 operand for Fprop and Dgrad (16x16 blocks, to "
        "nearest, no rotation), so none can travel as codes; leave --gather out"
    )


def _refuse_to_do_nothing(recipe: Recipe, phases: tuple[Phase, ...], config: TrainConfig) -> None:
    """A recipe that means to quantize and reaches no layer is a mistake, not a run in BF16."""
    means_to = any(precision.quantized for precision in recipe.precision.values())
    if means_to and not any(p.quantized for phase in phases for _, p in phase.table):
        raise UsageError(
            f"--recipe {config.recipe} quantizes none of the {len(phases[0].table)} linear layers "
            f"of {config.model} (nvfp4 explain shows why); for a run in BF16 give --recipe bf16"
        )


def find_phases(
    recipe: Recipe, model: nnx.Module, num_blocks: int, steps: int
) -> tuple[Phase, ...]:
    """The phases of a run of `steps`, resolved to tables of precisions."""
    phases = []
    for start in sorted({0, *recipe.switch_points(steps)}):
        now = recipe.at(start, steps)
        tables = [precision_table(r, model, num_blocks) for r in (now, now.for_evaluation())]
        phases.append(Phase(start, *tables))
    return tuple(phases)

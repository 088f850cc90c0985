"""`nvfp4 plan`: check, search, compile, read, show."""

from __future__ import annotations

import math

import jax
from rich.console import Console

from nvfp4_jax.compile_for import mesh_of
from nvfp4_jax.gpus import find_gpu
from nvfp4_jax.planning.candidate import Candidate, Job
from nvfp4_jax.planning.forecast import Forecast, foretell
from nvfp4_jax.planning.machine import Machine, machine_of
from nvfp4_jax.planning.memory import usable
from nvfp4_jax.planning.options import Plan
from nvfp4_jax.planning.progress import progress
from nvfp4_jax.planning.report import as_json, as_text
from nvfp4_jax.planning.search import best_of_each_mesh, candidates, meshes_of, ranked
from nvfp4_jax.planning.step import compile_step
from nvfp4_jax.recipe import load_recipe
from nvfp4_jax.training.config import at_least, check_microbatches
from nvfp4_jax.training.errors import UsageError
from nvfp4_jax.training.mesh import MeshShape, parse_mesh
from nvfp4_jax.training.model_choice import choose_model
from nvfp4_jax.training.prepare import check_mesh
from nvfp4_jax.training.proof import StepShape


def plan(options: Plan) -> None:
    """Do what `options` ask for and print it.

    Raises:
      UsageError: an option that cannot be honoured, or a job that does not fit.
      RecipeError: a recipe that cannot be read or does not fit the model.
    """
    jax.config.update("jax_platforms", "cpu")  # nothing runs; a plugin need not find its GPU
    forecast = foresee(options, Console(stderr=True, soft_wrap=True))
    print((as_json if options.json else as_text)(forecast))


def foresee(options: Plan, console: Console) -> Forecast:
    """The forecast of the mesh that was given, or of the best that fits."""
    job, machine = _checked(options)
    with progress(console) as say:
        tried: list[Forecast] = []
        for candidate in _candidates(options, job, machine):
            say(f"compiling for {candidate.mesh.size} x {job.gpu.kind}: {candidate}")
            step = compile_step(job, candidate)
            say("reading the program")
            tried.append(foretell(job, candidate, machine, step))
            if tried[-1].fits:
                break
            say(f"takes {tried[-1].memory.total / 1e9:.1f} GB of {usable(job.gpu) / 1e9:.1f}")
    return min(tried, key=lambda one: (not one.fits, one.memory.total))


def _checked(options: Plan) -> tuple[Job, Machine]:
    for name in ("batch", "length", "documents", "tries"):
        at_least(options, name, 1)
    for name in ("microbatches", "gpus"):
        if getattr(options, name) is not None:
            at_least(options, name, 1)
    if not 0 < options.tokens < math.inf:
        raise UsageError(f"--tokens {options.tokens}: give a positive number")
    try:
        gpu = find_gpu(options.gpu)
    except ValueError as error:
        raise UsageError(f"--gpu {options.gpu}: {error}") from None
    try:
        mesh_of(gpu)
    except ValueError as error:  # no compiler for CUDA: said before minutes of search and tracing
        raise UsageError(str(error)) from None
    job = Job(
        options.model,
        choose_model(options.model),
        load_recipe(options.recipe),
        gpu,
        options.batch,
        options.length,
        options.tokens,
        options.documents,
        options.scan,
        options.gather,
    )
    return job, machine_of(gpu)


def _candidates(options: Plan, job: Job, machine: Machine) -> list[Candidate]:
    """What is worth compiling, the best first."""
    meshes = list(meshes_of(job, _gpus(options))) if options.mesh is None else [_mesh(options)]
    every = list(candidates(job, meshes, options.microbatches, options.remat))
    if not every:
        raise UsageError(
            f"no mesh of {options.gpus} GPUs shares --batch {job.batch} and --length {job.length} "
            f"evenly; make the batch a multiple of {options.gpus}"
        )
    order = ranked(job, machine, every)
    order = best_of_each_mesh(order) if options.mesh is None else order
    return [one.candidate for one in order[: options.tries]]


def _gpus(options: Plan) -> int:
    if options.gpus is None:
        raise UsageError("say how many GPUs by --gpus 64, or which mesh by --mesh data=8,fsdp=8")
    return options.gpus


def _mesh(options: Plan) -> MeshShape:
    mesh = parse_mesh(options.mesh)
    if options.gpus not in (None, mesh.size):
        raise UsageError(f"--gpus {options.gpus}, but --mesh {mesh} has {mesh.size}; leave one out")
    shape = StepShape(options.batch, options.length, options.microbatches or 1)
    check_microbatches(shape)
    check_mesh(mesh, shape)
    return mesh

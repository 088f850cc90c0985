"""The model by which candidates are ranked, where its answer is known."""

from __future__ import annotations

import dataclasses

import pytest

from nvfp4_jax import models
from nvfp4_jax.gpus import find_gpu
from nvfp4_jax.planning.candidate import Candidate, Job
from nvfp4_jax.planning.machine import machine_of
from nvfp4_jax.planning.memory import usable
from nvfp4_jax.planning.search import (
    best_of_each_mesh,
    candidates,
    judge,
    meshes_of,
    parameters,
    ranked,
)
from nvfp4_jax.recipe import load_recipe
from nvfp4_jax.training.mesh import MeshShape

B200 = machine_of(find_gpu("b200"))


@pytest.fixture(scope="module")
def job() -> Job:
    recipe = load_recipe("nvfp4-12b")
    return Job("nano-12b-v2", models.preset("nano-12b-v2"), recipe, B200.gpu, 768, 8192)


def test_parameters_are_those_of_the_model(job):
    assert parameters(job.model) == pytest.approx(12.31e9, rel=1e-3)


def test_meshes_have_all_gpus_and_keep_what_talks_most_in_a_host(job):
    meshes = list(meshes_of(job, 64))
    assert len(set(meshes)) == len(meshes)
    assert {mesh.size for mesh in meshes} == {64}
    assert max(mesh.sequence * mesh.tensor for mesh in meshes) == 8


def test_candidates_share_rows_evenly_and_keep_what_is_given(job):
    found = list(candidates(job, meshes_of(job, 64), microbatches=3, remat="block"))
    assert found
    for one in found:
        assert (one.microbatches, one.remat) == (3, "block")
        assert 768 // 3 % one.mesh.row_shards == 0


def test_the_best_fits_and_needs_no_tensor_axis_where_rows_suffice(job):
    order = ranked(job, B200, candidates(job, meshes_of(job, 64)))
    assert all(one.bytes <= usable(B200.gpu) for one in order)
    assert order[0].candidate.mesh.tensor == order[0].candidate.mesh.sequence == 1
    each = best_of_each_mesh(order)
    assert len({one.candidate.mesh for one in each}) == len(each)
    assert each[0] == order[0]


def test_where_nothing_fits_the_least_is_left(job):
    one_gpu = list(candidates(job, [MeshShape()]))
    order = ranked(job, B200, one_gpu)
    assert len(order) == 1
    assert order[0].bytes == min(judge(job, B200, one).bytes for one in one_gpu) > 191e9


def test_more_kept_takes_more_memory_and_less_time(job):
    none, inputs, block = (
        judge(job, B200, Candidate(MeshShape(fsdp=64), 1, remat))
        for remat in ("none", "linear_inputs", "block")
    )
    assert none.bytes > inputs.bytes > block.bytes
    assert none.seconds <= inputs.seconds <= block.seconds


def test_a_slower_network_keeps_copies_of_the_weights_in_hosts(job):
    slow = dataclasses.replace(B200, network=1e9)
    best = ranked(job, slow, candidates(job, meshes_of(job, 64)))[0].candidate.mesh
    assert best.fsdp * best.sequence * best.tensor <= 8


def test_memory_is_what_xla_planned_for_the_12b(job):
    """GB of `nvfp4 plan`, blocks rematerialized: 64 B200, and 64 H100 with four microbatches."""
    h100 = dataclasses.replace(job, gpu=find_gpu("h100"))
    b200_cut, h100_cut = MeshShape(data=8, fsdp=8), MeshShape(fsdp=64)
    on_b200 = judge(job, B200, Candidate(b200_cut, 1, "block")).bytes
    assert on_b200 == pytest.approx(153.8e9, rel=0.1)
    on_h100 = judge(h100, B200, Candidate(h100_cut, 4, "block")).bytes
    assert on_h100 == pytest.approx(44.9e9, rel=0.1)

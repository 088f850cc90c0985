"""The clock that a schedule is played with, against times worked out by hand."""

from __future__ import annotations

import pytest

from nvfp4_jax.compiled.hlo import Program, parse
from nvfp4_jax.gpus import GPUS, find_gpu
from nvfp4_jax.planning.machine import Machine, Shares, machine_of
from nvfp4_jax.planning.roofline import time_of
from nvfp4_jax.planning.sizes import moved_bytes
from nvfp4_jax.planning.work import Works

SIZES = {"data": 1, "fsdp": 2, "sequence": 1, "tensor": 1}
WHOLE = Shares(product=1, memory=1, scan=1, attention=1, wire=1, latency=0, launch=0)
H100 = machine_of(find_gpu("h100"), WHOLE)

PROGRAM = """\
HloModule jit_f, is_scheduled=true

%slice_of (p: f32[8,1048576], n: s32[]) -> f32[1048576] {
  %p = f32[8,1048576]{1,0} parameter(0)
  %n = s32[] parameter(1)
  %zero = s32[] constant(0)
  %part = f32[1,1048576]{1,0} dynamic-slice(%p, %n, %zero), dynamic_slice_sizes={1,1048576}
  ROOT %flat = f32[1048576]{0} bitcast(%part)
}

%update_of (p: f32[8,1048576], u: f32[1,1048576], n: s32[]) -> f32[8,1048576] {
  %p = f32[8,1048576]{1,0} parameter(0)
  %u = f32[1,1048576]{1,0} parameter(1)
  %n = s32[] parameter(2)
  %zero = s32[] constant(0)
  ROOT %new = f32[8,1048576]{1,0} dynamic-update-slice(%p, %u, %n, %zero)
}

ENTRY %main (s: f32[8,1048576], n: s32[], a: bf16[4096,4096], b: bf16[4096,4096]) -> f32[] {
  %s = f32[8,1048576]{1,0} parameter(0)
  %n = s32[] parameter(1)
  %a = bf16[4096,4096]{1,0} parameter(2)
  %b = bf16[4096,4096]{1,0} parameter(3)
  %start = ((f32[8,1048576]{1,0}), f32[16,1048576]{1,0}) all-gather-start(%s), \
replica_groups=[1,2]<=[2], dimensions={0}
  %gemm = (bf16[4096,4096]{1,0}, s8[33554432]{0}) custom-call(%a, %b), \
custom_call_target="__cublas$gemm", backend_config={"gemm_backend_config":\
{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["0"]}}}
  %read = f32[1048576]{0} fusion(%s, %n), kind=kLoop, calls=%slice_of
  %one = f32[1,1048576]{1,0} bitcast(%read)
  %write = f32[8,1048576]{1,0} fusion(%s, %one, %n), kind=kLoop, calls=%update_of
  %done = f32[16,1048576]{1,0} all-gather-done(%start)
  ROOT %r = f32[] constant(0)
}
"""


@pytest.fixture(scope="module")
def program() -> Program:
    return parse(PROGRAM)


def timed(program: Program, machine: Machine = H100):
    return time_of(Works(program, length=1), machine, SIZES)


@pytest.mark.parametrize(("name", "megabytes"), [("read", 8), ("write", 8), ("gemm", 96)])
def test_a_slice_moves_its_own_bytes_and_a_workspace_none(program, name: str, megabytes: int):
    moved = moved_bytes(program, program.instructions["main", name])
    assert moved - moved % 2**20 == megabytes * 2**20


def test_flops_are_found_by_format(program):
    assert Works(program, length=1).flops_by_format() == {"bf16": 2 * 4096**3}


def test_what_overlaps_is_not_waited_for(program):
    arithmetic = 2 * 4096**3 / 989.4e12
    copies = 2 * 8 * 2**20 / H100.gpu.bandwidth
    wire = 32 * 2**20 / 450e9
    timing = timed(program)
    assert timing.communication == pytest.approx(wire)
    assert wire < arithmetic + copies
    assert timing.waiting == 0
    assert timing.seconds == pytest.approx(arithmetic + copies, rel=1e-4)
    assert timing.bound_by == "products in bf16"


def test_what_does_not_overlap_is(program):
    slow = Machine(H100.gpu, H100.flops, 1e9, 1e9, H100.domain, WHOLE)
    timing = timed(program, slow)
    assert timing.seconds == pytest.approx(32 * 2**20 / 1e9)
    assert timing.bound_by == "waiting for all-gather over fsdp"
    assert sum(timing.spent.values()) == pytest.approx(timing.seconds)


def test_adapters_of_a_host_add_up_to_what_nvlink_carries():
    assert H100.wire_rate(in_domain=2, group=2) == 450e9
    assert H100.wire_rate(in_domain=1, group=8) == 50e9
    assert H100.wire_rate(in_domain=8, group=16) == 400e9
    assert machine_of(find_gpu("b200"), WHOLE).wire_rate(in_domain=8, group=16) == 400e9


@pytest.mark.parametrize("name", GPUS)
def test_every_gpu_has_its_figures(name: str):
    machine = machine_of(find_gpu(name))
    assert machine.flops["bf16"] > machine.flops["f32"] > 0
    assert ("nvfp4" in machine.flops) == (machine.gpu.capability >= (10, 0))
    assert machine.nvlink > machine.network


OF_ITS_OWN = """\
HloModule jit_f, is_scheduled=true

%fused (p: s32[2]) -> s32[2] {
  %p = s32[2]{0} parameter(0)
  ROOT %sum = s32[2]{0} all-reduce(%p), replica_groups=[1,2]<=[2], to_apply=%add
}

ENTRY %main (a: s32[2]) -> s32[2] {
  %a = s32[2]{0} parameter(0)
  %start = ((s32[2]{0}), s32[2]{0}) fusion-start(%a), kind=kCustom, calls=%fused
  ROOT %done = s32[2]{0} fusion-done(%start)
}
"""


def test_a_kernel_that_is_an_all_reduce_takes_its_latency():
    machine = machine_of(find_gpu("h100"), Shares(latency=1.0))
    timing = timed(parse(OF_ITS_OWN), machine)
    assert timing.seconds == pytest.approx(1)
    assert timing.bound_by == "waiting for all-reduce over fsdp"

"""Compile for an H100 that is not there, and read what the compiler made of the arithmetic.

XLA's GPU compiler runs on any machine when it is told which GPU to compile for. That matters here
because it deletes what looks to it like needless roundings, which the CPU compiler does not: a
quantizer can pass every test on a CPU and do nothing on a GPU.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

H100 = """
gpu_device_info {
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: 233472
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  device_memory_size: 85029158912
  shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 minor: 0 }
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 8 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


@dataclass(frozen=True)
class Instruction:
    """`type` such as f32; operands and `computation` by name."""

    name: str
    type: str
    opcode: str
    operands: tuple[str, ...]
    computation: str
    text: str


def compile_for_h100(f: Callable, *arguments: jax.ShapeDtypeStruct) -> str:
    """The optimized HLO of `f`, as text."""
    topology = topologies.get_topology_desc(
        "h100", platform="cuda", target_config=H100, topology="1x1x1"
    )
    mesh = Mesh(np.asarray(topology.devices), ("device",))
    placed = [
        jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=NamedSharding(mesh, PartitionSpec()))
        for a in arguments
    ]
    text = jax.jit(f).lower(*placed).compile().as_text()
    assert text is not None
    return text


_HEADER = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
_LINE = re.compile(r"^\s+(?:ROOT )?%([\w.\-]+) = (\w+)\[[^=]*? ([\w\-]+)\(([^)]*)\)")


def instructions(hlo: str) -> list[Instruction]:
    """Every instruction with an array result, in all computations, fused ones included."""
    found, computation = [], ""
    for line in hlo.splitlines():
        if header := _HEADER.match(line):
            computation = header[1]
        elif match := _LINE.match(line):
            name, type, opcode, operands = match.groups()
            names = tuple(re.findall(r"%([\w.\-]+)", operands))
            found.append(Instruction(name, type, opcode, names, computation, line))
    return found


def magic_roundings(program: list[Instruction]) -> list[Instruction]:
    """Every (a + C) - C in float32: rounding to nearest by addition."""
    by_name = {(i.computation, i.name): i for i in program}

    def is_rounding(i: Instruction) -> bool:
        if (i.opcode, i.type) != ("subtract", "f32"):
            return False
        total = by_name.get((i.computation, i.operands[0]))
        return total is not None and total.opcode == "add" and i.operands[1] in total.operands

    return [i for i in program if is_rounding(i)]


def with_opcode(program: list[Instruction], opcode: str, type: str = "") -> list[Instruction]:
    return [i for i in program if i.opcode == opcode and i.type.startswith(type)]

"""Compile for an H100 that is not there, and read what the compiler made of the arithmetic.

XLA's GPU compiler runs on any machine when it is told which GPU to compile for. That matters here
because it deletes what looks to it like needless roundings, which the CPU compiler does not: a
quantizer can pass every test on a CPU and do nothing on a GPU.

jaxlib 0.11.2 assembles Mosaic kernels for one kind of GPU in a process, the first it meets. The
tests' own process is Hopper's; what needs Mosaic for another GPU runs `in_process_of` that GPU.
"""

from __future__ import annotations

import multiprocessing
import re
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from nvfp4_jax.compile_for import mesh_of
from nvfp4_jax.gpus import find_gpu

H100 = find_gpu("h100").target_config


@dataclass(frozen=True)
class Instruction:
    """`type` such as f32; operands and `computation` by name."""

    name: str
    type: str
    opcode: str
    operands: tuple[str, ...]
    computation: str
    text: str


def in_process_of(gpu: str, function: Callable, *arguments: Any, **options: Any) -> Any:
    """`function(*arguments)` in the process that compiles for `gpu`; it lives as long as the tests.

    Function, arguments and result are pickled: a function of a module, shapes, text.
    """
    return _process(gpu).submit(function, *arguments, **options).result()


@cache
def _process(gpu: str) -> ProcessPoolExecutor:
    spawned = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(1, mp_context=spawned, initializer=_on_a_cpu)


def _on_a_cpu() -> None:
    """And as `quick_to_compile`: what comes back is XLA's text of a program, which is the same."""
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_disable_most_optimizations", True)


def compile_for_h100(f: Callable, *arguments: jax.ShapeDtypeStruct) -> str:
    """The optimized HLO of `f`, as text; no kernel is chosen for it: the definition is compiled."""
    placed = NamedSharding(mesh_of("h100"), PartitionSpec())
    shapes = [jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=placed) for a in arguments]
    text = jax.jit(f).lower(*shapes).compile().as_text()
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

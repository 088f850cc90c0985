"""What a compiled step foretells, gathered from its program."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from nvfp4_jax.compiled.hlo import parse
from nvfp4_jax.planning.candidate import Candidate, Job
from nvfp4_jax.planning.collectives import Collective, collectives
from nvfp4_jax.planning.machine import Machine
from nvfp4_jax.planning.memory import MemoryByKind, memory_by_kind, usable
from nvfp4_jax.planning.roofline import Timing, time_of, wire_seconds
from nvfp4_jax.planning.step import CompiledStep
from nvfp4_jax.planning.work import Works
from nvfp4_jax.training.flops import step_flops


@dataclass(frozen=True)
class Traffic:
    """Collectives of one kind, over the same axes, of the same dtype, in one step.

    Attributes:
      kind, axes, dtype: theirs.
      count: how many, loops unrolled.
      sent: bytes that one device sends.
      seconds: of all of them, one after the other.
      largest: where the largest comes from, in the words of the traced program.
    """

    kind: str
    axes: tuple[str, ...]
    dtype: str
    count: int
    sent: float
    seconds: float
    largest: str


@dataclass(frozen=True)
class Forecast:
    """What one candidate needs.

    Attributes:
      job, candidate, machine: what it is of.
      memory: of a device.
      flops: of a device and step, by format.
      traffic: of a device and step.
      timing: of a step.
      notes: what a reader should know of how these were found.
    """

    job: Job
    candidate: Candidate
    machine: Machine
    memory: MemoryByKind
    flops: dict[str, float]
    traffic: tuple[Traffic, ...]
    timing: Timing
    notes: tuple[str, ...] = ()

    @property
    def fits(self) -> bool:
        """Whether a step's memory is what a GPU can give."""
        return self.memory.total <= usable(self.machine.gpu)

    @property
    def mfu(self) -> float:
        """Model FLOPs a second, to the dense bf16 peak of all devices."""
        flops = sum(step_flops(self.job.model, self.job.tokens, self.job.length).values())
        peak = self.machine.flops["bf16"] * self.candidate.mesh.size
        return flops / self.timing.seconds / peak

    @property
    def run_seconds(self) -> float:
        """Of the whole run."""
        return self.job.steps * self.timing.seconds


def foretell(job: Job, candidate: Candidate, machine: Machine, step: CompiledStep) -> Forecast:
    """Read a compiled step."""
    program, sizes = parse(step.text), candidate.mesh.sizes
    works = Works(program, job.length, job.documents)
    loops = program.loops_of_unknown_length()
    return Forecast(
        job=job,
        candidate=candidate,
        machine=machine,
        memory=memory_by_kind(step),
        flops=dict(works.flops_by_format()),
        traffic=tuple(_grouped(collectives(program, sizes, machine.domain), machine)),
        timing=time_of(works, machine, sizes),
        notes=(f"{len(loops)} loops of unknown length are counted once",) if loops else (),
    )


def _grouped(every: Iterable[Collective], machine: Machine) -> list[Traffic]:
    groups: dict[tuple, list[Collective]] = {}
    for one in every:
        groups.setdefault((one.kind, one.axes, one.dtype), []).append(one)
    rows = [
        Traffic(
            *key,
            count=sum(one.runs for one in group),
            sent=sum(one.sent * one.runs for one in group),
            seconds=sum(wire_seconds(one, machine) * one.runs for one in group),
            largest=max(group, key=lambda one: one.sent).op_name,
        )
        for key, group in groups.items()
    ]
    return sorted(rows, key=lambda row: -row.seconds)

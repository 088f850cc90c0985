"""How long a compiled step would take: its schedule, played with a clock for each resource.

A kernel takes the longest of

    FLOPs / (peak of its format x share)     bytes / (bandwidth x share)     a launch

and kernels run one after the other, in the order that XLA settled on. A collective runs beside
them, one at a time, from its start on; the end of it is waited for, and only that waiting counts.
So what overlaps is read in the program and not assumed. A loop takes its turns times one of them.

Not in it: the host between steps, compilation, reading data, saving, the slowing of arithmetic
by what a collective takes of multiprocessors and bandwidth, the slowest of many hosts.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

from nvfp4_jax.compiled.hlo import Instruction, Program
from nvfp4_jax.planning.collectives import Collective, collective_in, collective_of
from nvfp4_jax.planning.machine import Machine
from nvfp4_jax.planning.sizes import FREE
from nvfp4_jax.planning.work import Work, Works

_WAIT = "waiting for "


@dataclass(frozen=True)
class Timing:
    """Seconds of one run of a program on each device.

    Attributes:
      seconds: in all.
      spent: of these, by what they went into: `products in bf16`, `waiting for all-gather over
        fsdp`, ...; they add up to `seconds`.
      communication: of all collectives, waited for or not.
    """

    seconds: float
    spent: Mapping[str, float]
    communication: float

    @property
    def waiting(self) -> float:
        """Seconds in which nothing but communication went on."""
        return sum(s for name, s in self.spent.items() if name.startswith(_WAIT))

    @property
    def bound_by(self) -> str:
        """What most of the time goes into."""
        return max(self.spent, key=lambda name: self.spent[name])


def time_of(works: Works, machine: Machine, sizes: Mapping[str, int]) -> Timing:
    """The time of a program on a mesh of these sizes."""
    player = _Player(works, machine, sizes)
    turn = player.play(works.program.entry)
    return Timing(turn.now, dict(turn.spent), turn.communication)


def kernel_seconds(work: Work, machine: Machine) -> tuple[float, str]:
    """(seconds of a kernel, what it spends them on)."""
    shares = machine.shares
    if work.kind == "scan":
        by_bytes = work.bytes / (machine.gpu.bandwidth * shares.scan)
        return max(by_bytes, shares.launch), "state-space scan"
    options = [(shares.launch, "launches"), (work.bytes / machine.bandwidth, "memory traffic")]
    if work.kind == "attention":
        options.append((work.flops / (machine.flops["bf16"] * shares.attention), "attention"))
    if work.kind == "product":
        options.append((work.flops / machine.rate(work.format), f"products in {work.format}"))
    return max(options)


def wire_seconds(collective: Collective, machine: Machine) -> float:
    """Seconds of one collective."""
    rate = machine.wire_rate(collective.in_domain, collective.group)
    return machine.shares.latency + collective.sent / rate


@dataclass
class _Turn:
    """One run of a computation: the clocks of kernels and wires, and what began."""

    now: float = 0.0
    wire: float = 0.0
    communication: float = 0.0
    spent: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    ends: dict[str, tuple[float, str]] = field(default_factory=dict)

    def spend(self, seconds: float, on: str) -> None:
        self.now += seconds
        self.spent[on] += seconds

    def begin(self, name: str, seconds: float, on: str) -> None:
        self.wire = max(self.wire, self.now) + seconds
        self.communication += seconds
        self.ends[name] = (self.wire, on)

    def end(self, name: str) -> None:
        at, on = self.ends.pop(name, (0.0, ""))
        if at > self.now:
            self.spend(at - self.now, _WAIT + on)

    def add(self, turn: _Turn, times: int) -> None:
        self.now += turn.now * times
        self.communication += turn.communication * times
        for name, seconds in turn.spent.items():
            self.spent[name] += seconds * times


class _Player:
    def __init__(self, works: Works, machine: Machine, sizes: Mapping[str, int]) -> None:
        self._works, self._machine, self._sizes = works, machine, sizes
        self._by_computation: dict[str, list[Instruction]] = {}
        for i in works.program.instructions.values():
            self._by_computation.setdefault(i.computation, []).append(i)

    def play(self, computation: str) -> _Turn:
        turn = _Turn()
        for i in self._by_computation[computation]:
            self._instruction(turn, i)
        turn.end(max(turn.ends, key=lambda name: turn.ends[name][0]) if turn.ends else "")
        return turn

    def _instruction(self, turn: _Turn, i: Instruction) -> None:
        if i.opcode == "while":
            turn.add(self.play(i.called[1]), i.trips or 1)
        elif i.opcode == "call":
            turn.add(self.play(i.called[0]), 1)
        elif i.opcode == "conditional":
            turn.add(max(map(self.play, i.called), key=lambda one: one.now), 1)
        elif i.opcode.endswith("-done"):
            turn.end(i.operands[0])
        elif inner := collective_in(self._program, i):
            self._collective(turn, i, inner)
        elif i.opcode not in FREE:
            turn.spend(*kernel_seconds(self._works.of(i), self._machine))

    def _collective(self, turn: _Turn, i: Instruction, inner: Instruction) -> None:
        one = collective_of(self._program, inner, self._sizes, self._machine.domain)
        if one.group == 1:
            return
        turn.begin(i.name, wire_seconds(one, self._machine), _words(one))
        if not i.opcode.endswith("-start"):
            turn.end(i.name)

    @property
    def _program(self) -> Program:
        return self._works.program


def _words(one: Collective) -> str:
    return f"{one.kind} over {' x '.join(one.axes)}"

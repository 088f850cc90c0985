"""Which ways to run a step are worth compiling: all of them, judged by a model of a few lines.

Of one device, with N parameters, t tokens of a microbatch a device and m microbatches:

    state          (4 + 8) N / (fsdp tensor)            weights, moments
    gradients      4 N / (fsdp tensor)                  twice if m > 1
    activations    t (what `remat` keeps of a token) + a block's own
    head           8 vocabulary hidden: gathered, and its gradient in FP32
    memory         state + (gradients + activations + head) (1 + what XLA's places leave empty)
    arithmetic     model FLOPs (4/3 of them if blocks are run twice) at the rate of their format
    weights        m 12 N / tensor over fsdp: gathered twice, scattered once; 8 N / (fsdp tensor)
                   over data: gradients, all-reduced
    tokens         per mixer and pass: gathered and scattered over tensor, to heads and back over
                   sequence

    time = arithmetic + weights + tokens

Weights travel behind arithmetic and slow it by about as long as they take: 15 and 22 ms a step for
20 and 12 ms of traffic on two H200.

It ranks and no more: what is reported is read in the compiled program.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import get_args

from nvfp4_jax import models
from nvfp4_jax.planning.candidate import Candidate, Job
from nvfp4_jax.planning.machine import Machine
from nvfp4_jax.planning.memory import usable
from nvfp4_jax.training.flops import step_flops
from nvfp4_jax.training.mesh import MeshShape
from nvfp4_jax.training.prepare import scans

_ALL_KEPT = 3.0  # what everything kept takes, to the inputs of linear layers: 1b, planned
# The memory that XLA sets aside, to what lives in it at once. As compiled: 1.02 to 1.16 unrolled
# (12B's blocks, 1b); as a loop 1.07 to 1.38 of 1b, 1.50 and 1.60 of the 12B in NVFP4.
_SET_ASIDE_UNROLLED, _SET_ASIDE_IN_LOOPS = 1.15, 1.6
_MOST_MICROBATCHES = 64
_PASSES = {"none": 3, "linear_inputs": 4, "block": 4}  # forward, again, and backward as two


@dataclass(frozen=True)
class Judged:
    """A candidate, and what the model above says of it: seconds a step, bytes a device."""

    candidate: Candidate
    seconds: float
    bytes: float


def ranked(job: Job, machine: Machine, every: Iterable[Candidate]) -> list[Judged]:
    """Candidates in the order in which they are worth compiling: the fastest that seem to fit.

    If none does, the one that needs least.
    """
    judged = sorted((judge(job, machine, one) for one in every), key=_preference)
    fitting = [one for one in judged if one.bytes <= usable(machine.gpu)]
    return fitting or sorted(judged, key=lambda one: one.bytes)[:1]


def _preference(one: Judged) -> tuple[float, int, float]:
    """By time; among equals the fewest microbatches, then the least memory."""
    return one.seconds, one.candidate.microbatches, one.bytes


def best_of_each_mesh(order: Iterable[Judged]) -> list[Judged]:
    """The first of each mesh, in the same order."""
    found: dict[MeshShape, Judged] = {}
    for one in order:
        found.setdefault(one.candidate.mesh, one)
    return list(found.values())


def candidates(
    job: Job,
    meshes: Iterable[MeshShape],
    microbatches: int | None = None,
    remat: models.Remat | None = None,
) -> Iterator[Candidate]:
    """Every way to run a job on these meshes, with microbatches and remat if they are given."""
    parts = [microbatches] if microbatches else _powers(_MOST_MICROBATCHES)
    kept: tuple[models.Remat, ...] = (remat,) if remat else get_args(models.Remat)
    for mesh, count, what in itertools.product(meshes, parts, kept):
        if job.batch % (count * mesh.row_shards) == 0:
            yield Candidate(mesh, count, what)


def meshes_of(job: Job, gpus: int) -> Iterator[MeshShape]:
    """Every mesh of so many GPUs whose sequence and tensor axes stay within a host."""
    for tensor, sequence in itertools.product(_powers(job.gpu.per_host), repeat=2):
        rest, ragged = divmod(gpus, tensor * sequence)
        if ragged or job.length % (tensor * sequence) or tensor * sequence > job.gpu.per_host:
            continue
        for fsdp in (n for n in range(1, rest + 1) if rest % n == 0):
            yield MeshShape(data=rest // fsdp, fsdp=fsdp, sequence=sequence, tensor=tensor)


def judge(job: Job, machine: Machine, candidate: Candidate) -> Judged:
    """What the model of this module says of a candidate."""
    weights, tokens = _traffic_seconds(job, machine, candidate)
    seconds = _arithmetic_seconds(job, machine, candidate) + weights + tokens
    return Judged(candidate, seconds, _bytes(job, candidate))


def parameters(model: models.HybridConfig) -> int:
    """Weights of linear layers, embedding and head; the rest is a thousandth."""
    return sum(a * b for a, b in _linears(model)) + 2 * model.vocabulary * model.hidden


def _linears(model: models.HybridConfig) -> Iterator[tuple[int, int]]:
    """(inputs, outputs) of every linear layer of the blocks."""
    h, attention = model.hidden, model.attention_heads * model.head_dim
    keys = 2 * model.kv_heads * model.head_dim
    gates = 2 if model.mlp == "swiglu" else 1
    by_letter = {
        "M": [(h, model.in_proj_features), (model.mamba_inner, h)],
        "-": [(h, gates * model.ffn), (model.ffn, h)],
        "*": [(h, attention + keys), (attention, h)],
    }
    for letter in model.pattern:
        yield from by_letter[letter]


def _bytes(job: Job, candidate: Candidate) -> float:
    mesh, count = candidate.mesh, parameters(job.model) / candidate.mesh.fsdp
    gradients = 4 * (1 + (candidate.microbatches > 1)) * count / mesh.tensor
    head = 8 * job.model.vocabulary * job.model.hidden
    looped = scans(job.scan, job.model, job.steps, mesh.size)
    set_aside = _SET_ASIDE_IN_LOOPS if looped else _SET_ASIDE_UNROLLED
    lives = gradients + _activation_bytes(job, candidate) + head
    return 12 * count / mesh.tensor + set_aside * lives


def _activation_bytes(job: Job, candidate: Candidate) -> float:
    model, tokens = job.model, job.tokens / candidate.microbatches / candidate.mesh.size
    inputs = sum(a for a, _ in _linears(model))
    a_block = _ALL_KEPT * max(2 * sum(pair) for pair in _linears(model))
    kept = {
        "none": _ALL_KEPT * 2 * inputs,
        "linear_inputs": 2 * inputs + a_block,
        "block": 2 * model.num_blocks * model.hidden + a_block,
    }
    return tokens * kept[candidate.remat]


def _arithmetic_seconds(job: Job, machine: Machine, candidate: Candidate) -> float:
    flops = step_flops(job.model, job.tokens, job.length)
    again = _PASSES[candidate.remat] / 3
    quantized = any(p.quantized for p in job.recipe.precision.values())
    blocks = machine.rate("nvfp4" if quantized else "bf16")
    seconds = flops.pop("logits") / machine.rate("bf16") + sum(flops.values()) * again / blocks
    return seconds / candidate.mesh.size


def _traffic_seconds(job: Job, machine: Machine, candidate: Candidate) -> tuple[float, float]:
    """(weights and gradients, activations)."""
    mesh, model = candidate.mesh, job.model
    count = parameters(model) / mesh.tensor
    weights = candidate.microbatches * 12 * count * _seconds_a_byte(machine, mesh, "fsdp")
    weights += 8 * count / mesh.fsdp * _seconds_a_byte(machine, mesh, "data")
    a_pass = 2 * job.tokens / mesh.row_shards * _PASSES[candidate.remat]
    over_tensor = 2 * len(model.pattern) * model.hidden / mesh.sequence
    over_sequence = sum(a + b for a, b in _linears(model)) / mesh.tensor / mesh.sequence
    tokens = a_pass * over_tensor * _seconds_a_byte(machine, mesh, "tensor")
    tokens += a_pass * over_sequence * _seconds_a_byte(machine, mesh, "sequence")
    return weights, tokens


def _seconds_a_byte(machine: Machine, mesh: MeshShape, axis: str) -> float:
    """Of an array gathered or scattered over an axis."""
    names = list(mesh.sizes)
    inner = math.prod(mesh.sizes[name] for name in names[names.index(axis) + 1 :])
    group = mesh.sizes[axis]
    together = min(group, max(machine.domain // inner, 1))
    return (group - 1) / group / machine.wire_rate(together, group)


def _powers(most: int) -> list[int]:
    return [2**n for n in range(most.bit_length()) if 2**n <= most]

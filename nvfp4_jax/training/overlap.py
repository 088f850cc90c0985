"""Communication behind arithmetic: what XLA is told when a step runs on several GPUs.

XLA makes every collective asynchronous: it starts on a stream of its own, and only what needs its
result waits for it. How much arithmetic lies between start and end is up to the scheduler.
`OPTIONS` says what we ask of it, in one place. They are options of one compilation,
`lowered.compile(compiler_options=...)`: they need no XLA_FLAGS, reach nothing else in the process,
and are part of the key of the compilation cache.

Tried on two H200, 1b in bf16, fsdp=2 (`python -m experiments.scaling --tried ...`, BENCHMARKS.md):

| options                                      | step, ms | peak, GB | verdict                     |
|----------------------------------------------|----------|----------|-----------------------------|
| none                                         | 289.4    | 46.4     | jaxlib 0.11.2 schedules so  |
| latency-hiding scheduler                     | 289.1    | 46.4     | the same program; spelt out |
| and combine collectives up to 128 or 256 MB  | 287.8    | 46.4     | within the spread of runs   |
| optimization_level O1: the scheduler,        | 286.5    | 52.6     | 1% for 6 GB: no             |
| pipelined collectives, loops unrolled by two |          |          |                             |
"""

from __future__ import annotations

from typing import NamedTuple

from jax.sharding import Mesh


class Option(NamedTuple):
    """One option of XLA, its value, and why it has it."""

    name: str
    value: bool | int | str
    why: str


OPTIONS: tuple[Option, ...] = (
    Option(
        "xla_gpu_enable_latency_hiding_scheduler",
        True,
        "orders a step so that collectives have arithmetic between start and end, in any jaxlib",
    ),
)


def compiler_options(mesh: Mesh | None) -> dict[str, bool | int | str]:
    """For `lowered.compile(compiler_options=...)`; none for one device, or without a GPU."""
    if mesh is None or mesh.size == 1 or mesh.devices.flat[0].platform not in ("cuda", "gpu"):
        return {}
    return {option.name: option.value for option in OPTIONS}

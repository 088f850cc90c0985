"""Communication behind arithmetic: what XLA is told when a step runs on several GPUs.

XLA makes every collective asynchronous: it starts on a stream of its own, and only what needs its
result waits for it. How much arithmetic lies between start and end is up to the scheduler, which by
itself keeps memory low and not the network busy. `OPTIONS` changes that, in one place.

They are options of one compilation, `lowered.compile(compiler_options=...)`, so they need no
XLA_FLAGS, reach nothing else in the process, and are part of the key of the compilation cache.
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
        "orders a step so that a collective has arithmetic between its start and its end",
    ),
)


def compiler_options(mesh: Mesh | None) -> dict[str, bool | int | str]:
    """For `lowered.compile(compiler_options=...)`; none for one device, or without a GPU."""
    if mesh is None or mesh.size == 1 or mesh.devices.flat[0].platform not in ("cuda", "gpu"):
        return {}
    return {option.name: option.value for option in OPTIONS}

"""Kernels that XLA chooses by trial: the same ones in every process, and at every start.

On a GPU XLA times several kernels for a product or a fusion and keeps the fastest. Two of them are
often as fast and add up in another order, so a second trial may end otherwise. Two H200, a process
on each: where every process tried for itself, runs of the same command differed from each other,
and from one process on both GPUs, after 3 to 9 steps; with the choices of one, 400 steps equal one
process's to the last digit of every loss, killed and continued.

What is chosen is written beside the compiled programs by the first process (jax has it so: process
0 updates the folder, the others read it). Hence the first compiles before the others begin
(`distributed.first_alone`).

XLA's own way, to share out the trials among the processes, is switched off. With it two of four
pairs hung in compiling; likely since a process that finds its program in a cache takes no part, and
the others wait for it for ever. That is not proven (BENCHMARKS.md, "Several processes").
"""

from __future__ import annotations

import os

from jax.sharding import Mesh

_APART = "--xla_gpu_shard_autotuning=false"


def keep_trials_apart() -> None:
    """Have no program of this process, jax's own among them, share trials with other processes.

    XLA reads its flags when the first program is compiled, and takes them from there alone for a
    whole process.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if "xla_gpu_shard_autotuning" not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {_APART}".strip()


def by_trial(mesh: Mesh) -> bool:
    """Whether kernels for these devices are chosen so; a CPU's are not."""
    return mesh.devices.flat[0].platform in ("cuda", "gpu")

"""Which GPU a function is traced for: the one at hand, or the one it is being compiled for.

A kernel is chosen while a function is traced, when no device has been asked yet. On a machine with
a GPU that is the GPU. When compiling for a cluster nobody here owns, it is the device of the
abstract mesh in force:

    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        jax.jit(step).lower(...).compile()
"""

from __future__ import annotations

import re
from functools import cache

import jax

Capability = tuple[int, int]

# NVIDIA's names as the driver reports them, by their compute capability.
_KNOWN: dict[str, Capability] = {
    "A100": (8, 0),
    "A10G": (8, 6),
    "L4": (8, 9),
    "L40S": (8, 9),
    "H100": (9, 0),
    "H200": (9, 0),
    "GH200": (9, 0),
    "B200": (10, 0),
    "GB200": (10, 0),
    "B300": (10, 3),
    "GB300": (10, 3),
}


def capability() -> Capability | None:
    """(major, minor) of the NVIDIA GPU in view; None for a CPU or another maker's GPU."""
    target = jax.sharding.get_abstract_mesh().abstract_device
    if target is not None:
        return by_name(target.device_kind) if target.platform == "gpu" else None
    if jax.default_backend() != "gpu" or _told_to_use_a_cpu():
        return None
    return _parsed(str(getattr(jax.local_devices()[0], "compute_capability", "")))


def multiprocessors(otherwise: int) -> int:
    """How many the GPU in view has; `otherwise` where no device tells."""
    target = jax.sharding.get_abstract_mesh().abstract_device
    if target is not None and target.num_cores:
        return target.num_cores
    device = jax.local_devices()[0]
    return device.core_count if device.platform == "gpu" else otherwise


def _told_to_use_a_cpu() -> bool:
    """Whether `jax.default_device` says so on a machine that has a GPU."""
    chosen = jax.config.jax_default_device
    return chosen is not None and "cpu" in str(getattr(chosen, "platform", chosen))


@cache
def by_name(device_kind: str) -> Capability | None:
    """The capability of a GPU by its full name, such as `NVIDIA H100 80GB HBM3`."""
    words = re.split(r"[\s\-]+", device_kind)
    return next((_KNOWN[word] for word in words if word in _KNOWN), None)


def _parsed(text: str) -> Capability | None:
    match = re.fullmatch(r"(\d+)\.(\d+)", text)
    return (int(match[1]), int(match[2])) if match else None

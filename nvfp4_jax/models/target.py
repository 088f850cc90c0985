"""Which form of an operation runs: plain XLA, or a kernel written for the GPU at hand.

Plain XLA is the definition and runs everywhere. A kernel does the same in fewer passes over
memory; it needs a GPU of a generation it compiles for, and arguments it was written for. The
choice is made while a function is traced: by the GPU of this machine, or, when compiling for
machines that are elsewhere, by the device of the abstract mesh in force. Where there is a GPU and
plain XLA runs all the same, though nobody asked for it, the log says so once, with the reason.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import logging
import re
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Literal

import jax

from nvfp4_jax.models.pieces import is_cutting

Capability = tuple[int, int]
Implementation = Literal["xla", "triton"]

# Ampere to Blackwell. They ran on Hopper alone; for the others they are compiled in the tests.
KERNELS_FROM, KERNELS_BELOW = (8, 0), (11, 0)

_plain: ContextVar[bool] = ContextVar("plain", default=False)

_BY_NAME = {
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
    """(major, minor) of the NVIDIA GPU that is traced for; None for any other device."""
    target = jax.sharding.get_abstract_mesh().abstract_device
    if target is not None:
        words = re.split(r"[\s\-]+", target.device_kind) if target.platform == "gpu" else []
        return next((_BY_NAME[word] for word in words if word in _BY_NAME), None)
    chosen = jax.config.jax_default_device  # a person with a GPU may have asked for the CPU
    cpu = chosen is not None and "cpu" in str(getattr(chosen, "platform", chosen))
    if cpu or jax.default_backend() != "gpu":
        return None
    text = str(getattr(jax.local_devices()[0], "compute_capability", ""))
    match = re.fullmatch(r"(\d+)\.(\d+)", text)
    return (int(match[1]), int(match[2])) if match else None


@contextlib.contextmanager
def plain_operations() -> Iterator[None]:
    """While open (while a model is traced), no kernel is chosen; none can be mapped by `vmap`."""
    token = _plain.set(True)
    try:
        yield
    finally:
        _plain.reset(token)


def rounded(x: jax.Array) -> jax.Array:
    """x; under `plain_operations` or in pieces, and both ways, as it is before it is read.

    A product that is fused with the sum that reads it is rounded with it, once (FMA). Whether it is
    fused depends on shapes, and so on the mesh.
    """
    return jax.lax.optimization_barrier(x) if _plain.get() or is_cutting() else x


def choose(
    implementation: Implementation | None, obstacle: Callable[[], str | None], what: str
) -> Implementation:
    """The implementation to run.

    Args:
      implementation: a name means that one; None the fastest that can run.
      obstacle: tells why the kernel cannot take the arguments, None if it can. Called only where
        there is a GPU for it, so that Triton is imported only there.
      what: the operation, as the log names it.

    Raises:
      ValueError: `triton` was asked for and cannot run, with the reason; an unknown name.
    """
    if implementation not in (None, "xla", "triton"):
        raise ValueError(f"implementation = {implementation!r}: use None, 'xla' or 'triton'")
    if implementation == "xla":
        return "xla"
    reason = _no_kernels() or obstacle()
    if implementation == "triton" and reason:
        raise ValueError(f"the Triton kernel cannot run: {reason}; leave implementation out")
    if reason and not _plain.get() and capability() is not None:
        _say_once(f"{what} in plain XLA: the Triton kernel cannot run: {reason}")
    return "xla" if reason else "triton"


@functools.cache
def _say_once(message: str) -> None:
    logging.getLogger("nvfp4_jax").warning(message)


def _no_kernels() -> str | None:
    if _plain.get():
        return "plain operations were asked for"
    found = capability()
    if found is None or not KERNELS_FROM <= found < KERNELS_BELOW:
        return f"it is for capability 8.0 to 10.x (Ampere to Blackwell), not {found}"
    if importlib.util.find_spec("jax_triton") is None:
        return "jax-triton is not installed"
    return None


def compute_capability() -> int:
    """The target as Triton spells it: 90 for Hopper."""
    major, minor = capability() or (0, 0)
    return 10 * major + minor

"""What can run here: each implementation's needs, and the reason where they are not met."""

from __future__ import annotations

import importlib.util
import logging
from functools import cache
from types import ModuleType

from nvfp4_jax.kernels import xla
from nvfp4_jax.kernels.capability import capability

TCGEN05 = ((10, 0), (10, 3))  # capabilities with these 4-bit tensor cores


def no_triton() -> str | None:
    """Why the fused kernels cannot run here, or None if they can."""
    found = capability()
    if found is None:
        return "needs an NVIDIA GPU, and JAX sees none"
    if not (8, 0) <= found < (11, 0):
        return f"is for compute capability 8.0 to 10.x, and this GPU has {found[0]}.{found[1]}"
    if importlib.util.find_spec("jax_triton") is None:
        return "needs jax-triton; install nvfp4_jax[cuda]"
    return None


def no_blackwell() -> str | None:
    """Why 4-bit tensor cores cannot be used here, or None if they can."""
    found = capability()
    if found is None:
        return "needs an NVIDIA Blackwell GPU, and JAX sees none"
    if found not in TCGEN05:
        return (
            f"needs the tcgen05 instructions of compute capability 10.0 or 10.3, and this GPU has "
            f"{found[0]}.{found[1]}"
        )
    return no_triton()


def quantizing() -> ModuleType:
    """The best of the modules that quantize: `fused`, or `xla` where it cannot run."""
    reason = no_triton()
    if reason is None:
        return fused()
    if capability() is not None:
        _say_once(f"quantizing in plain XLA: triton {reason}")
    return xla


def fused() -> ModuleType:
    """Imported when first chosen: it needs Triton, which a laptop may not have."""
    from nvfp4_jax.kernels import fused

    return fused


@cache
def _say_once(message: str) -> None:
    logging.getLogger("nvfp4_jax").warning(message)

"""Which implementation runs: `None` is the best available, a name means that one or an error.

| name   | what                          | where                                            |
|--------|-------------------------------|--------------------------------------------------|
| xla    | the definition, in plain JAX  | everywhere                                       |
| triton | fused kernels, the same bits  | NVIDIA GPUs of compute capability 8.0 to 9.x     |

The choice is made while a function is traced, for the GPU that `capability` sees. Where nothing
was named, a quantizer that has no fused kernel runs as `xla`; `fallback` says why.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterable
from functools import cache
from types import ModuleType

from nvfp4_jax.kernels import xla
from nvfp4_jax.kernels.capability import capability
from nvfp4_jax.quantizer import Quantizer, nearest_spelling

IMPLEMENTATIONS = ("xla", "triton")


def unsupported(implementation: str) -> str | None:
    """Why `implementation` cannot run here, or None if it can."""
    if implementation not in IMPLEMENTATIONS:
        return f"is not known: {nearest_spelling(implementation, IMPLEMENTATIONS)}"
    return None if implementation == "xla" else _no_triton()


def select(implementation: str | None, quantizers: Iterable[Quantizer] = ()) -> ModuleType:
    """The module with `quantize`, `to_operands`, `to_packed`, `from_packed` and `dequantize`.

    Raises:
      ValueError: the named implementation does not exist, cannot run here, or does not do one of
        these quantizers; the reason is given.
    """
    if implementation is None:
        implementation, reason = best()
        if reason is not None and capability() is not None:
            _say_once(f"quantizing in plain XLA: {reason}")
    elif reason := unsupported(implementation):
        raise ValueError(f"implementation = {implementation!r} {reason}")
    elif implementation == "triton" and (reasons := list(filter(None, map(fallback, quantizers)))):
        raise ValueError(
            f"implementation = 'triton': {reasons[0]}; leave implementation out, and such "
            "quantizers run as xla"
        )
    return xla if implementation == "xla" else _fused()


def best() -> tuple[str, str | None]:
    """(the implementation that `None` means here, why it is not the fused one)."""
    reason = _no_triton()
    return ("triton", None) if reason is None else ("xla", f"triton {reason}")


def fallback(quantizer: Quantizer) -> str | None:
    """Why this quantizer's matrices run as `xla` where others run fused; None if they do not."""
    return _fused().unsupported(quantizer, (16, 16), -1) if _no_triton() is None else None


def _no_triton() -> str | None:
    found = capability()
    if found is None:
        return "needs an NVIDIA GPU, and JAX sees none"
    if not (8, 0) <= found < (10, 0):
        return f"is for compute capability 8.0 to 9.x, and this GPU has {found[0]}.{found[1]}"
    if importlib.util.find_spec("jax_triton") is None:
        return "needs jax-triton; install nvfp4_jax[cuda]"
    return None


def _fused() -> ModuleType:
    """Imported when first chosen: it needs Triton, which a laptop may not have."""
    from nvfp4_jax.kernels import fused

    return fused


@cache
def _say_once(message: str) -> None:
    logging.getLogger("nvfp4_jax").warning(message)

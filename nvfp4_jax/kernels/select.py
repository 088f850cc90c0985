"""Which implementation runs: `None` is the best available, a name means that one or an error."""

from __future__ import annotations

from types import ModuleType

from nvfp4_jax.kernels import xla
from nvfp4_jax.quantizer import nearest_spelling

IMPLEMENTATIONS = ("xla",)


def unsupported(implementation: str) -> str | None:
    """Why `implementation` cannot run here, or None if it can."""
    if implementation in IMPLEMENTATIONS:
        return None
    return f"is not known: {nearest_spelling(implementation, IMPLEMENTATIONS)}"


def select(implementation: str | None) -> ModuleType:
    """The module with `quantize`, `quantize_to_operand` and `dequantize`.

    Raises:
      ValueError: the named implementation does not exist or cannot run here; the reason is given.
    """
    if implementation is not None and (reason := unsupported(implementation)):
        raise ValueError(f"implementation = {implementation!r} {reason}")
    return xla

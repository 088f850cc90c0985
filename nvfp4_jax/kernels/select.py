"""Which implementation runs: `None` is the best available, a name means that one or an error.

| name      | what                                   | where                                    |
|-----------|----------------------------------------|------------------------------------------|
| xla       | the definition, in plain JAX           | everywhere                               |
| triton    | fused kernels, the same bits           | NVIDIA GPUs of capability 8.0 to 10.x    |
| blackwell | 4-bit codes through 4-bit tensor cores | NVIDIA GPUs of capability 10.0 and 10.3  |
| cudnn     | 4-bit codes, `jax.nn.scaled_matmul`    | everywhere; 4-bit hardware on Blackwell  |

The first two quantize, and emulate products in bf16. The last two are for products of two
quantized operands; what is no such product (see `native`) runs emulated, by the best of the first
two, or raises if one of the last two was named.

The choice is made while a function is traced, for the GPU that `capability` sees. Where nothing
was named, a quantizer that has no fused kernel runs as `xla`; `fallback` says why.
"""

from __future__ import annotations

from collections.abc import Iterable
from types import ModuleType

from nvfp4_jax.kernels import native, xla
from nvfp4_jax.kernels.available import fused, no_blackwell, no_triton, quantizing
from nvfp4_jax.kernels.capability import capability
from nvfp4_jax.quantizer import Quantizer, nearest_spelling

IMPLEMENTATIONS = ("xla", "triton", "blackwell", "cudnn")


def unsupported(implementation: str) -> str | None:
    """Why `implementation` cannot run here, or None if it can."""
    if implementation not in IMPLEMENTATIONS:
        return f"is not known: {nearest_spelling(implementation, IMPLEMENTATIONS)}"
    obstacles = {"triton": no_triton, "blackwell": no_blackwell}
    return obstacles[implementation]() if implementation in obstacles else None


def select(implementation: str | None, quantizers: Iterable[Quantizer] = ()) -> ModuleType:
    """The module with `quantize`, `to_operands`, `to_packed`, `from_packed` and `dequantize`.

    Raises:
      ValueError: the named implementation does not exist, cannot run here, or does not do one of
        these quantizers; the reason is given.
    """
    if implementation is not None:
        _check(implementation, quantizers)
    if implementation in (None, "blackwell", "cudnn"):
        return quantizing()
    return xla if implementation == "xla" else fused()


def select_native(implementation: str | None) -> ModuleType | None:
    """The module with `to_native`, `native_product` and `emulated`; None if all is emulated."""
    name = best()[0] if implementation is None else implementation
    if name == "blackwell":
        from nvfp4_jax.kernels import blackwell

        return blackwell
    if name == "cudnn":
        from nvfp4_jax.kernels import cudnn

        return cudnn
    return None


def best() -> tuple[str, str | None]:
    """(the implementation that `None` means here, why it is not a better one)."""
    reason = no_blackwell()
    if reason is None:
        return "blackwell", None
    slower = no_triton()
    if slower is not None:
        return "xla", f"triton {slower}"
    return "triton", f"blackwell {reason}" if (capability() or (0, 0)) >= (10, 0) else None


def fallback(quantizer: Quantizer) -> str | None:
    """Why this quantizer's matrices run as `xla` where others run fused; None if they do not."""
    return fused().unsupported(quantizer, (16, 16), -1) if no_triton() is None else None


def _check(implementation: str, quantizers: Iterable[Quantizer]) -> None:
    if reason := unsupported(implementation):
        raise ValueError(f"implementation = {implementation!r} {reason}")
    judge = {"xla": lambda _: None, "triton": fallback}.get(implementation, native.unsupported)
    if reasons := list(filter(None, map(judge, quantizers))):
        raise ValueError(
            f"implementation = {implementation!r}: {reasons[0]}; leave implementation out, and "
            "such quantizers run by another"
        )

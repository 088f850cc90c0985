"""What XLA is told about numbers: to round where the program rounds.

By itself XLA drops a rounding to bf16 that is followed by a cast back to FP32, if both end up in
one fusion ("excess precision"). What a step computes would then depend on how it was fused, and
with it on the mesh: the gradients of a small model on eight devices differ from those on one by
5e-4 of their norm with it, by 2e-7 without.
"""

from __future__ import annotations

OPTIONS: dict[str, bool | int | str] = {"xla_allow_excess_precision": False}
"""For `lowered.compile(compiler_options=...)` or `jax.jit(..., compiler_options=...)`."""

ORDERED: dict[str, bool | int | str] = OPTIONS | {
    "xla_cpu_experimental_ynn_fusion_type": "",
    "xla_gpu_autotune_level": 0,
    "xla_gpu_deterministic_ops": True,
    "xla_gpu_enable_triton_gemm": False,
}
"""For sums in one order (`ordered`). XLA's CPU backend gives some reductions, those with many
results, to a library (YNN) that adds up in another order; on a mesh a device has fewer results. On
GPUs no kernel is chosen by trial, which may end otherwise on another mesh: products are cuBLAS's,
by its own choice for their size, and nothing is added up by atomics."""


def options(sum_parts: int | None) -> dict[str, bool | int | str]:
    """Those of a step that sums in this many parts, or in any order (None)."""
    return OPTIONS if sum_parts is None else ORDERED

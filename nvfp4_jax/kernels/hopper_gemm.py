"""A bf16 product on Hopper whose FP32 sums are scaled before they leave the registers.

    out = round_dtype(((a b) s_0) s_1)        a, b bf16; a b, s_0, s_1 and their products FP32

The tensor scales of NVFP4 stay out of the bf16 operands, which could not hold them exactly, and
multiply the FP32 product. cuBLAS as XLA calls it takes no such factor from device memory: it would
write the product in FP32 and a second kernel would read it again, a tenth of the time of a layer.
Here they multiply the sums on their way out, one after the other, each product rounded to FP32:
the bits of the separate multiplications, of which only the last is rounded to `dtype`.

Either operand may be contracted along either axis: tensor cores of Hopper read bf16 tiles both
ways from shared memory, so Fprop (rows times columns), Dgrad (the weight along its other axis) and
Wgrad (both operands along tokens) run without transposing anything in memory.

The kernel is compiled by Mosaic GPU (`jax.experimental.pallas.mosaic_gpu`).
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array

from nvfp4_jax.kernels.capability import multiprocessors
from nvfp4_jax.kernels.hopper_gemm_tiling import WORTH_A_PASS, Problem, tiling_for, wasted_terms
from nvfp4_jax.kernels.lowered_once import lowered_once

_HOPPER = (9, 0)
_UNIT = 32  # bf16 elements of the shortest rows in shared memory, 64 bytes
_WIDEST_STORE = 64  # columns that one store covers, at most
# An H100's or H200's (SXM), where no device tells.
_sm_count = partial(multiprocessors, otherwise=132)


def scaled_matmul(
    a: Array,
    b: Array,
    contract_a: int,
    contract_b: int,
    scales: tuple[Array, ...] = (),
    dtype: jax.typing.DTypeLike = jnp.bfloat16,
) -> Array:
    """The product of two bf16 matrices over one axis of each, scaled in FP32, rounded once.

    Args:
      a: bf16, contracted along axis `contract_a`.
      b: bf16, contracted along axis `contract_b`.
      scales: FP32 scalars; the FP32 product is multiplied with the first, then the next.
      dtype: of the result, bfloat16 or float32.

    Returns:
      Shape (other axis of a, other axis of b).

    Raises:
      ValueError: for what `unsupported` gives a reason.
    """
    if reason := unsupported(a.shape, b.shape, contract_a, contract_b, dtype, _HOPPER):
        raise ValueError(f"scaled_matmul of {a.shape} and {b.shape}: {reason}")
    # Mosaic takes a second to import, and only Hopper needs it.
    from nvfp4_jax.kernels.hopper_gemm_body import gemm_kernel

    problem = _problem(a.shape, b.shape, contract_a, contract_b, dtype)
    sm_count = _sm_count()
    kernel = gemm_kernel(problem, tiling_for(problem, sm_count), len(scales), sm_count)
    out = jax.ShapeDtypeStruct((problem.m, problem.n), problem.dtype)
    return lowered_once(kernel, out, a, b, *(scale.reshape(1) for scale in scales))


def unsupported(
    a_shape: tuple[int, ...],
    b_shape: tuple[int, ...],
    contract_a: int,
    contract_b: int,
    dtype: jax.typing.DTypeLike,
    compute_capability: tuple[int, int] | None,
) -> str | None:
    """Why this product is none for `scaled_matmul`, in plain words; None if it is one."""
    if compute_capability != _HOPPER:
        return "only Hopper (compute capability 9.0) has these tensor cores"
    if (len(a_shape), len(b_shape)) != (2, 2):
        return "operands are not matrices"
    if a_shape[contract_a] != b_shape[contract_b]:
        return f"contracted lengths {a_shape[contract_a]} and {b_shape[contract_b]} differ"
    if jnp.dtype(dtype) not in (jnp.bfloat16, jnp.float32):
        return f"the result would be {jnp.dtype(dtype).name}, not bfloat16 or float32"
    if ragged := [length for length in (*a_shape, *b_shape) if length % _UNIT or not length]:
        return f"{ragged[0]} is not a positive multiple of {_UNIT}"
    if (columns := b_shape[1 - contract_b]) <= _WIDEST_STORE:
        # TMA loses the axis of tiles, and with it the check of bounds, where there is one tile.
        return f"an output of {columns} columns is too narrow"
    return None


def slower(
    a_shape: tuple[int, ...],
    b_shape: tuple[int, ...],
    contract_a: int,
    contract_b: int,
    dtype: jax.typing.DTypeLike,
) -> bool:
    """Whether XLA's product and a pass for the scales take less time: few tiles, long sums."""
    problem = _problem(a_shape, b_shape, contract_a, contract_b, dtype)
    return wasted_terms(problem, _sm_count()) > WORTH_A_PASS


def _problem(
    a_shape: tuple[int, ...],
    b_shape: tuple[int, ...],
    contract_a: int,
    contract_b: int,
    dtype: jax.typing.DTypeLike,
) -> Problem:
    m, n, k = a_shape[1 - contract_a], b_shape[1 - contract_b], a_shape[contract_a]
    return Problem(m, n, k, contract_a, contract_b, jnp.dtype(dtype))

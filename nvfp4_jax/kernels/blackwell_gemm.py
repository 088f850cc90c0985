"""The NVFP4 product on Blackwell's 4-bit tensor cores, scaled before its sums leave the SM.

    out = round_dtype(((sum_j (a_j b_j) s_aj s_bj) s_0) s_1)     j over blocks of 16 along k

a_j and b_j are E2M1 codes, s_aj and s_bj their E4M3 block scales; products and sums are the tensor
core's, in FP32. The tensor scales s_0 and s_1 multiply the sums on their way out, one after the
other, each product rounded to FP32, and only the last is rounded to `dtype`.

Operands come as `blackwell_layout` lays them out, contiguous along the contraction: a tensor core
reads 4-bit operands in no other way, so each GEMM of a layer has its own copies.

The kernel is compiled by Mosaic GPU (`jax.experimental.pallas.mosaic_gpu`). It has been compiled
for sm_100a and sm_103a and its machine code read (tests/kernels/test_blackwell_gemm*.py); it has
never been executed.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from nvfp4_jax.kernels.blackwell_gemm_tiling import (
    LANES,
    ROWS,
    SCALES_K,
    STEP_K,
    Problem,
    tiling_for,
    up_to,
)
from nvfp4_jax.kernels.capability import multiprocessors
from nvfp4_jax.kernels.lowered_once import lowered_once

CAPABILITIES = ((10, 0), (10, 3))  # sm_100a and sm_103a
_sm_count = partial(multiprocessors, otherwise=148)  # of a B200, where no device tells


def block_scaled_matmul(
    a_codes: Array,
    a_scale: Array,
    b_codes: Array,
    b_scale: Array,
    shape: tuple[int, int, int],
    scalars: tuple[Array, ...] = (),
    dtype: jax.typing.DTypeLike = jnp.bfloat16,
) -> Array:
    """The product a b^T of two NVFP4 matrices, scaled in FP32, rounded once.

    Args:
      a_codes: uint8 (m, k / 2), two E2M1 codes a byte, the even element in the low nibble.
      a_scale: float8_e4m3fn (ceil(m / 128), k / 64, 32, 4, 4), the scale of row r and block j of
        16 elements at [r // 128, j // 4, r % 32, (r % 128) // 32, j % 4].
      b_codes: likewise (n, k / 2).
      b_scale: likewise (ceil(n / 128), k / 64, 32, 4, 4).
      shape: (m, n, k); k counts elements with their padding.
      scalars: FP32 scalars; the FP32 sums are multiplied with the first, then the next.
      dtype: of the result, bfloat16 or float32.

    Returns:
      Shape (m, n).

    Raises:
      ValueError: for what `unsupported` gives a reason, and for operands of another shape.
    """
    if reason := unsupported(shape, dtype, CAPABILITIES[0]):
        raise ValueError(f"block_scaled_matmul of (m, n, k) = {shape}: {reason}")
    m, n, k = shape
    a, a_scale = _operand(a_codes, a_scale, m, k, "a")
    b, b_scale = _operand(b_codes, b_scale, n, k, "b")
    # Mosaic takes a second to import, and only Blackwell needs it.
    from nvfp4_jax.kernels.blackwell_gemm_body import gemm_kernel

    problem, sm_count = Problem.of(*shape, jnp.dtype(dtype)), _sm_count()
    kernel = gemm_kernel(problem, tiling_for(problem, sm_count), len(scalars), sm_count)
    factors = (scalar.reshape(1) for scalar in scalars)
    sums = jax.ShapeDtypeStruct((problem.m, problem.n), problem.dtype)
    return lowered_once(kernel, sums, a, b, a_scale, b_scale, *factors)[:m, :n]


def unsupported(
    shape: tuple[int, int, int],
    dtype: jax.typing.DTypeLike,
    compute_capability: tuple[int, int] | None,
) -> str | None:
    """Why this product is none for `block_scaled_matmul`, in plain words; None if it is one."""
    if compute_capability not in CAPABILITIES:
        return (
            "only data-center Blackwell (compute capability 10.0 and 10.3) has tensor cores with "
            "tensor memory"
        )
    if jnp.dtype(dtype) not in (jnp.bfloat16, jnp.float32):
        return f"the result would be {jnp.dtype(dtype).name}, not bfloat16 or float32"
    if min(shape) < 1:
        return f"an axis of {min(shape)} elements"
    if shape[2] % SCALES_K:
        return f"a padded contraction of {shape[2]} is no multiple of {SCALES_K}"
    return None


def _operand(codes: Array, scale: Array, rows: int, k: int, name: str) -> tuple[Array, Array]:
    """Codes as float4_e2m1fn (rows, k) and scales, both padded with zeros to whole steps."""
    from nvfp4_jax.kernels.blackwell_gemm_body import SCALES_TILE

    tiles = (-(-rows // LANES), k // SCALES_K)
    if codes.shape != (rows, k // 2) or codes.dtype != jnp.uint8:
        raise ValueError(f"{name}: codes are {codes.dtype}{codes.shape}, not uint8{(rows, k // 2)}")
    if scale.shape != (*tiles, 32, 4, 4) or scale.dtype != jnp.float8_e4m3fn:
        expected = f"float8_e4m3fn{(*tiles, 32, 4, 4)}"
        raise ValueError(f"{name}: block scales are {scale.dtype}{scale.shape}, not {expected}")
    more_k = up_to(STEP_K, k) - k
    codes = _pad(codes, up_to(ROWS, rows) - rows, more_k // 2)
    scale = _pad(scale.reshape(*tiles, *SCALES_TILE), 0, more_k // SCALES_K)
    # Where XLA packs two elements a byte, the first is in the low nibble: nothing moves.
    pairs = lax.bitcast_convert_type(codes, jnp.float4_e2m1fn)
    return pairs.reshape(codes.shape[0], -1), scale


def _pad(array: Array, rows: int, columns: int) -> Array:
    """Zeros after the first two axes, and no operation where there are none to add."""
    if not rows and not columns:
        return array
    rest = [(0, 0)] * (array.ndim - 2)
    return jnp.pad(array, [(0, rows), (0, columns), *rest])

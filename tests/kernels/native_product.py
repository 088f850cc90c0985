"""The product of native operands on GPUs that have no 4-bit tensor cores: the twin of Blackwell's.

It reads the very bytes that the block-scaled product reads, codes and scales at their documented
places, and multiplies value times scale: in float32, or in bf16 on tensor cores, which is exact
since 6 bits suffice. Slow, and for the tests alone.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import triton
import triton.language as tl
from jax import lax

from nvfp4_jax.kernels import launch
from nvfp4_jax.kernels.triton_codes import decode_e2m1, decode_e4m3

M, N, K = 64, 64, 128  # of a tile


def product(a, b, bf16=False):
    """float32 (m, n) of two (codes, block scales); the scales of the tensors are not applied."""
    (m, half), n = a[0].shape, b[0].shape[0]
    inputs = (array for codes, scale in (a, b) for array in (codes, _bytes(scale)))
    return launch.call(
        product_kernel,
        tuple(inputs),
        jax.ShapeDtypeStruct((m, n), jnp.float32),
        grid=-(-m // M) * -(-n // N),
        warps=4,
        compute_capability=None,
        ROWS=m,
        COLUMNS=n,
        LENGTH=2 * half,
        M=M,
        N=N,
        K=K,
        BF16=bf16,
    )


def _bytes(scale):
    return lax.bitcast_convert_type(scale, jnp.uint8)


@triton.jit
def product_kernel(
    a, a_scale, b, b_scale, out,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, LENGTH: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, BF16: tl.constexpr,
):  # fmt: skip
    """Even elements apart from odd ones, as they come out of a byte."""
    row, column = _origin(COLUMNS, M, N)
    acc = tl.zeros((M, N), tl.float32)
    for k in range(0, LENGTH, K):
        a_bytes, a_scales = _load(a, a_scale, row, k, ROWS, LENGTH, M, K)
        b_bytes, b_scales = _load(b, b_scale, column, k, COLUMNS, LENGTH, N, K)
        for odd in tl.static_range(2):
            left = _values(a_bytes, a_scales, 4 * odd, M, K)
            right = tl.trans(_values(b_bytes, b_scales, 4 * odd, N, K))
            if BF16:
                acc = tl.dot(left.to(tl.bfloat16), right.to(tl.bfloat16), acc)
            else:
                acc += tl.dot(left, right, input_precision="ieee")
    _store(out, acc, row, column, ROWS, COLUMNS, M, N)


@triton.jit
def _origin(COLUMNS: tl.constexpr, M: tl.constexpr, N: tl.constexpr):
    ACROSS: tl.constexpr = (COLUMNS + N - 1) // N
    program = tl.program_id(0)
    return program // ACROSS * M, program % ACROSS * N


@triton.jit
def _load(
    codes, scales, row, k, ROWS: tl.constexpr, LENGTH: tl.constexpr,
    R: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """(bytes (R, K / 2), scales (R, K / 16)) of the rows from `row` and the elements from `k`."""
    rows = row + tl.arange(0, R)[:, None]
    bytes_of_row = k // 2 + tl.arange(0, K // 2)[None, :]
    inside = rows < ROWS
    data = tl.load(codes + rows * (LENGTH // 2) + bytes_of_row, mask=inside, other=0)
    blocks = k // 16 + tl.arange(0, K // 16)[None, :]
    tile = (rows // 128 * (LENGTH // 64) + blocks // 4) * 512
    place = tile + rows % 32 * 16 + rows % 128 // 32 * 4 + blocks % 4
    return data, tl.load(scales + place, mask=inside, other=0)


@triton.jit
def _values(data, scales, SHIFT: tl.constexpr, R: tl.constexpr, K: tl.constexpr):
    """Every other element times its block's scale, (R, K / 2)."""
    values = decode_e2m1((data.to(tl.int32) >> SHIFT) & 15).reshape(R, K // 16, 8)
    return (values * decode_e4m3(scales)[:, :, None]).reshape(R, K // 2)


@triton.jit
def _store(
    out, acc, row, column, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    rows = row + tl.arange(0, M)[:, None]
    columns = column + tl.arange(0, N)[None, :]
    tl.store(out + rows * COLUMNS + columns, acc, mask=(rows < ROWS) & (columns < COLUMNS))

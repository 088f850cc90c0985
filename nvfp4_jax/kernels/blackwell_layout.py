"""How a 4-bit tensor core wants its operands: packed codes, and scales in tiles of 128 x 4.

An operand is a matrix of (rows, K) with K, the contraction, contiguous.

    codes         uint8 (rows, Kp / 2)       two E2M1 codes a byte, the even element low
    block_scale   E4M3  (rows / 128, Kp / 64, 32, 4, 4)

Kp is K rounded up to a multiple of 256, whole steps of the product's main loop (the scales alone
would do with 64); the padding of both is zero. The scale of row r and of the
block j of 16 elements lies at

    [r // 128, j // 4, r % 32, (r % 128) // 32, j % 4]

so that 128 rows by 4 blocks, what one 64-deep step of the tensor core takes, are 512 bytes in a
row (PTX ISA, `tcgen05.mma` block scaling, `scale_vec::4X`; cuBLAS and cuDNN take the same). A
16x16 block has its scale in each of its 16 rows.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, UInt8

from nvfp4_jax import packing
from nvfp4_jax.kernels.blackwell_gemm_tiling import STEP_K

BLOCK = 16
SCALE_ROWS, SCALE_BLOCKS = 128, 4  # of a tile of scales
SCALE_LENGTH = BLOCK * SCALE_BLOCKS  # elements along the contraction that a tile of scales is for
K_MULTIPLE = STEP_K


def padded_contraction(length: int, multiple: int = K_MULTIPLE) -> int:
    """Kp for a contraction of `length` elements."""
    return -(-length // multiple) * multiple


def codes_shape(rows: int, length: int, multiple: int = K_MULTIPLE) -> tuple[int, int]:
    """The shape of the codes of an operand (rows, length)."""
    return rows, padded_contraction(length, multiple) // 2


def scale_shape(
    rows: int, length: int, multiple: int = K_MULTIPLE
) -> tuple[int, int, int, int, int]:
    """The shape of its block scales."""
    tiles = -(-rows // SCALE_ROWS), padded_contraction(length, multiple) // SCALE_LENGTH
    return *tiles, 32, 4, SCALE_BLOCKS


def swizzle(scale: Array) -> Array:
    """Scales (rows, blocks), one for every row, in tiles of 128 x 4, padded with zeros."""
    rows, blocks = scale.shape
    tiles_down, tiles_across, *_ = scale_shape(rows, blocks * BLOCK)
    down, across = tiles_down * SCALE_ROWS - rows, tiles_across * SCALE_BLOCKS - blocks
    tiles = jnp.pad(scale, [(0, down), (0, across)])
    tiles = tiles.reshape(tiles_down, 4, 32, tiles_across, SCALE_BLOCKS)
    return tiles.transpose(0, 3, 2, 1, 4)


def unswizzle(tiles: Array, rows: int, blocks: int) -> Array:
    """The inverse of `swizzle`: (rows, blocks), without the padding."""
    tiles_down, tiles_across = tiles.shape[:2]
    scale = tiles.transpose(0, 3, 2, 1, 4).reshape(tiles_down * SCALE_ROWS, tiles_across * 4)
    return scale[:rows, :blocks]


def from_linear(codes: Array, scale: Array) -> tuple[UInt8[Array, "rows bytes"], Array]:
    """float4_e2m1fn codes (rows, K) and E4M3 scales in native form.

    Args:
      codes: of a matrix with its contraction last.
      scale: (rows, ceil(K / 16)), or (ceil(rows / 16), ceil(K / 16)) of 16x16 blocks.

    Raises:
      ValueError: the scales are not those of such codes.
    """
    rows, length = codes.shape
    blocks = -(-length // BLOCK)
    if scale.shape not in ((rows, blocks), (-(-rows // BLOCK), blocks)):
        raise ValueError(
            f"scales {scale.shape} of codes {codes.shape}: expected {(rows, blocks)}, or "
            f"{(-(-rows // BLOCK), blocks)} of 16x16 blocks"
        )
    if scale.shape[0] != rows:
        scale = jnp.repeat(scale, BLOCK, axis=0)[:rows]
    padding = [(0, 0), (0, padded_contraction(length) - length)]
    return packing.pack(jnp.pad(codes, padding)), swizzle(scale)


def to_linear(codes: Array, block_scale: Array, length: int) -> tuple[Array, Array]:
    """The inverse of `from_linear`: float4_e2m1fn (rows, length) and (rows, ceil(length / 16))."""
    scale = unswizzle(block_scale, codes.shape[0], -(-length // BLOCK))
    return lax.slice_in_dim(packing.unpack(codes), 0, length, axis=1), scale

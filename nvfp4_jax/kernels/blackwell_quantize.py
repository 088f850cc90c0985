"""Calls of the quantizer for 4-bit tensor cores: what to compute in, packed codes and scales out.

The manner of `launch`, whose amax kernels it shares: a matrix as (1, rows, columns), blocks along
its columns or its rows. The codes and scales have the bits of `nvfp4_jax.kernels.xla`, in the
layout of `blackwell_layout`.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Float32, Int32, UInt8, UInt32

from nvfp4_jax.kernels import launch, tiles, triton_native
from nvfp4_jax.kernels.blackwell_layout import (
    K_MULTIPLE,
    SCALE_LENGTH,
    SCALE_ROWS,
    codes_shape,
    padded_contraction,
    scale_shape,
)
from nvfp4_jax.kernels.capability import capability
from nvfp4_jax.kernels.tiles import BLOCK, Copy, NativeTile

HARDWARE_CASTS = (100, 103)  # compute capabilities that have `cvt.rs` to 4 bits


def native_operands(
    x: Float[Array, "1 rows columns"],
    copies: tuple[Copy, ...],
    amax: Int32[Array, "copies"],
    signs: Float32[Array, "16"],
    keys: UInt32[Array, "copies 2"],
    offset: UInt32[Array, "3"],
    rows: int,
    round_to_bf16: bool = False,
    compute_capability: int | None = None,
    hardware: bool | None = None,
    *,
    length_multiple: int = K_MULTIPLE,
    tile: NativeTile | None = None,
) -> list[tuple[UInt8[Array, "r bytes"], Array]]:
    """One or two copies of `x` as (codes, block_scale), contracted along each copy's axis.

    The arguments are those of `launch.operands`, for one batch entry. `blackwell_layout` gives the
    shapes; a rotated axis counts as padded to a multiple of 16.

    Args:
      hardware: cast with Blackwell's instructions; None where they exist. They round
        stochastically with 8 bits: 16 and 32 are done by arithmetic. `triton_casts` says what of
        this was never checked.
      length_multiple: what the contraction is padded to a multiple of, itself one of 64. Shards
        of a longer one, none of them padded, lie side by side as the whole does.
      tile: another than that of the table.

    Raises:
      ValueError: a shape, a dtype, a number of copies or a multiple that this cannot do, or
        `hardware` for a GPU without those instructions.
    """
    launch.check(x, copies)
    if x.shape[0] != 1:
        raise ValueError(
            f"x of shape {x.shape}: a native operand is one matrix, (1, rows, columns)"
        )
    if length_multiple <= 0 or length_multiple % SCALE_LENGTH:
        raise ValueError(f"length_multiple = {length_multiple}: a multiple of {SCALE_LENGTH}")
    tile = tile or tiles.for_native(copies)
    meta, down, across = _tile_meta(x.shape, copies, length_multiple, tile)
    suffixes = ("",) if len(copies) == 1 else ("0", "1")
    for copy, suffix in zip(copies, suffixes, strict=True):
        own = launch.copy_meta(copy, rows)
        own["LENGTH"] = padded_contraction(matrix_shape(x.shape, copy)[1], length_multiple)
        meta |= {name + suffix: value for name, value in own.items()}
    out = launch.call(
        triton_native.native_kernel if len(copies) == 1 else triton_native.two_native_kernel,
        (x, amax, signs, offset, keys),
        [
            jax.ShapeDtypeStruct(shape, jnp.uint8)
            for copy in copies
            for shape in native_shapes(x.shape, copy, length_multiple)
        ],
        grid=down * across,
        warps=tile.warps,
        compute_capability=compute_capability,
        ROUND=round_to_bf16 and x.dtype == jnp.float32,
        HARDWARE=has_hardware_casts(compute_capability, hardware),
        **meta,
    )
    return [
        (codes, lax.bitcast_convert_type(scale, jnp.float8_e4m3fn))
        for codes, scale in zip(out[::2], out[1::2], strict=True)
    ]


def native_shapes(
    shape: tuple[int, ...], copy: Copy, length_multiple: int = K_MULTIPLE
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of codes and scales of a copy of (1, rows, columns)."""
    sizes = *matrix_shape(shape, copy), length_multiple
    return codes_shape(*sizes), scale_shape(*sizes)


def matrix_shape(shape: tuple[int, ...], copy: Copy) -> tuple[int, int]:
    """(rows, contraction) of a copy; a rotation pads the contraction to a multiple of 16."""
    _, rows, columns = launch.operand_shape(shape, copy)
    return (columns, rows) if copy.axis == "rows" else (rows, columns)


def has_hardware_casts(compute_capability: int | None, hardware: bool | None) -> bool:
    """Whether to cast with Blackwell's instructions, on a GPU that is the first device if None.

    Raises:
      ValueError: they are asked for where they do not exist.
    """
    major, minor = capability() or (0, 0)
    found = 10 * major + minor if compute_capability is None else compute_capability
    if hardware and found not in HARDWARE_CASTS:
        raise ValueError(
            f"hardware = True for compute capability {found}: of those we know only "
            f"{HARDWARE_CASTS} round to 4 bits stochastically; leave it out"
        )
    return found in HARDWARE_CASTS if hardware is None else hardware


def _tile_meta(shape, copies, length_multiple: int, tile: NativeTile):
    """(sizes, programs below each other, programs beside each other), padding included."""
    contracted = {copy.axis for copy in copies}
    down = _programs(shape[1], length_multiple if "rows" in contracted else 1, tile.down)
    across = _programs(shape[2], length_multiple if "columns" in contracted else 1, tile.across)
    covered = BLOCK * tile.down * down, BLOCK * tile.across * across
    meta = {"ROWS": shape[1], "COLUMNS": shape[2], "ACROSS": across}
    meta["WHOLE"] = covered == tuple(shape[1:])
    return meta | {"B": tile.down, "N": tile.across, "G": tile.threads_a_block}, down, across


def _programs(size: int, multiple: int, blocks: int) -> int:
    """That cover an axis with the padding of codes and of scales."""
    multiple = math.lcm(multiple, SCALE_ROWS)
    return -(-size // multiple) * multiple // (BLOCK * blocks)

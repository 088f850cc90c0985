"""Calls of the Triton kernels: what to compute in, arrays out.

Every tensor is seen as (batch, rows, columns). Blocks lie along the columns, or along the rows
of one batch entry. Nothing here knows of quantizers' names, of vmap or of shards: that is
`select`'s. The bits are those of `nvfp4_jax.kernels.xla`.
"""

from __future__ import annotations

import inspect
from typing import Any

import jax
import jax.numpy as jnp
import jax_triton
from jax import lax
from jaxtyping import Array, Float, Float32, Int32, UInt8, UInt32

from nvfp4_jax.kernels import tiles, triton_amax, triton_pack, triton_quantize
from nvfp4_jax.kernels.tiles import BLOCK, Copy, Tile


def amax_bits(
    x: Float[Array, "batch rows columns"],
    wanted: tuple[Copy, ...],
    signs: Float32[Array, "16"],
    round_to_bf16: bool = False,
    compute_capability: int | None = None,
    *,
    tile: Tile | None = None,
) -> Int32[Array, "copies"]:
    """The bits of max |.| of `x` as each of one or two copies sees it, from one read.

    That is of x, or of its rotation (rounded to bf16 if x is bf16). NaN and infinity survive.
    """
    check(x, wanted)
    if not any(copy.rht for copy in wanted):
        return _flat_amax(x, len(wanted), round_to_bf16, compute_capability)
    tile = tiles.narrowed(tile or tiles.for_amax(wanted), x.shape[2])
    return call(
        triton_amax.tile_amax_kernel,
        (x, signs),
        jax.ShapeDtypeStruct((len(wanted),), jnp.int32),
        grid=programs(x.shape, tile),
        warps=tile.warps,
        compute_capability=compute_capability,
        zeroed_outputs=(0,),
        **_tile_meta(x, tile, round_to_bf16),
        **amax_meta(wanted),
    )


def _flat_amax(x, copies, round_to_bf16, compute_capability):
    return call(
        triton_amax.flat_amax_kernel,
        (x,),
        jax.ShapeDtypeStruct((copies,), jnp.int32),
        grid=-(-x.size // tiles.AMAX_RUN),
        warps=tiles.AMAX_WARPS,
        compute_capability=compute_capability,
        zeroed_outputs=(0,),
        SIZE=x.size,
        TILE=tiles.AMAX_RUN,
        ROUND=round_to_bf16 and x.dtype == jnp.float32,
        COPIES=copies,
    )


def operands(
    x: Float[Array, "batch rows columns"],
    copies: tuple[Copy, ...],
    amax: Int32[Array, "copies"],
    signs: Float32[Array, "16"],
    keys: UInt32[Array, "copies 2"],
    offset: UInt32[Array, "3"],
    rows: int,
    round_to_bf16: bool = False,
    compute_capability: int | None = None,
    *,
    tile: Tile | None = None,
) -> tuple[Array, ...]:
    """One or two copies of `x`, as value times block scale in bf16, from one read.

    Args:
      x: bf16 or float32.
      copies: what to make; the contraction axis of a rotated copy grows to a multiple of 16.
      amax: of each copy, from `amax_bits` (or its maximum over shards).
      signs: the rotation's, read only if a copy is rotated.
      keys: two words a copy, not read for one that is rounded to nearest.
      offset: (batch entry, row, column) of x's first element in the whole tensor, where x is a
        shard of one. The column is a multiple of 16.
      rows: of a batch entry of the whole tensor. For random bits, they count as padded to a
        multiple of 16 in a copy rotated along them.
      round_to_bf16: round a float32 x to bf16 on load; all else is then as for a bf16 x.
      compute_capability: 90 for 9.0; None asks the first device.
      tile: another than that of the table.

    Raises:
      ValueError: a shape, a dtype or a number of copies that this cannot do.
    """
    check(x, copies)
    shapes = [operand_shape(x.shape, copy) for copy in copies]
    if rows == x.shape[1] and all(c.axis == "columns" and not c.square for c in copies):
        x = x.reshape(1, -1, x.shape[2])  # so that a program's rows may be of two batch entries
    tile = tiles.narrowed(tile or tiles.for_operands(copies), x.shape[2])
    suffixes = ("",) if len(copies) == 1 else ("0", "1")
    meta = _tile_meta(x, tile, round_to_bf16)
    for copy, suffix in zip(copies, suffixes, strict=True):
        meta |= {name + suffix: value for name, value in copy_meta(copy, rows).items()}
    out = call(
        triton_quantize.operand_kernel if len(copies) == 1 else triton_quantize.two_operands_kernel,
        (x, amax, signs, offset, keys),
        [jax.ShapeDtypeStruct(operand_shape(x.shape, copy), jnp.bfloat16) for copy in copies],
        grid=programs(x.shape, tile),
        warps=tile.warps,
        compute_capability=compute_capability,
        **meta,
    )
    return tuple(one.reshape(shape) for one, shape in zip(out, shapes, strict=True))


def packed(
    x: Float[Array, "batch rows columns"],
    copy: Copy,
    amax: Int32[Array, "1"],
    signs: Float32[Array, "16"],
    keys: UInt32[Array, "1 2"],
    offset: UInt32[Array, "3"],
    rows: int,
    round_to_bf16: bool = False,
    compute_capability: int | None = None,
    *,
    tile: Tile | None = None,
) -> tuple[UInt8[Array, "batch r c"], Array]:
    """`x` as two codes a byte along the contraction axis, and float8_e4m3fn scales.

    The arguments are those of `operands`, for one copy. The contraction axis is padded to whole
    blocks: codes have half, scales (of a square block both axes) a sixteenth of its length.
    """
    check(x, (copy,))
    tile = tiles.narrowed(tile or tiles.for_operands((copy,)), x.shape[2])
    codes, scales = call(
        triton_pack.pack_kernel,
        (x, amax, signs, offset, keys),
        [jax.ShapeDtypeStruct(shape, jnp.uint8) for shape in packed_shapes(x.shape, copy)],
        grid=programs(x.shape, tile),
        warps=tile.warps,
        compute_capability=compute_capability,
        **_tile_meta(x, tile, round_to_bf16),
        **copy_meta(copy, rows),
    )
    return codes, lax.bitcast_convert_type(scales, jnp.float8_e4m3fn)


def unpacked(
    codes: UInt8[Array, "batch r c"],
    scales: Array,
    shape: tuple[int, ...],
    copy: Copy,
    compute_capability: int | None = None,
    *,
    tile: Tile | None = None,
) -> Array:
    """What `operands` gives, of `operand_shape` = `shape`, from what `packed` gives.

    Raises:
      ValueError: codes and scales are not those of such a shape.
    """
    expected = packed_shapes(shape, copy)
    if (codes.shape, scales.shape) != expected:
        raise ValueError(
            f"codes {codes.shape} and scales {scales.shape} of shape {shape} as {copy}: "
            f"expected {expected[0]} and {expected[1]}"
        )
    tile = tiles.narrowed(tile or tiles.for_operands((copy,)), shape[2])
    return call(
        triton_pack.unpack_kernel,
        (codes, lax.bitcast_convert_type(scales, jnp.uint8)),
        jax.ShapeDtypeStruct(shape, jnp.bfloat16),
        grid=programs(shape, tile),
        warps=tile.warps,
        compute_capability=compute_capability,
        **shape_meta(shape, tile),
        ALONG_ROWS=copy.axis == "rows",
        SQUARE=copy.square,
    )


def packed_shapes(shape: tuple[int, ...], copy: Copy) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of codes and scales of a tensor of `shape`."""
    batch, rows, columns = shape
    row_blocks, column_blocks = -(-rows // BLOCK), -(-columns // BLOCK)
    along_rows = copy.axis == "rows"
    codes = (batch, 8 * row_blocks, columns) if along_rows else (batch, rows, 8 * column_blocks)
    return codes, (
        batch,
        row_blocks if along_rows or copy.square else rows,
        columns if along_rows and not copy.square else column_blocks,
    )


def operand_shape(shape: tuple[int, ...], copy: Copy) -> tuple[int, ...]:
    """Of a copy as an operand: a rotated axis is padded to whole rotations."""
    batch, rows, columns = shape
    if copy.rht and copy.axis == "rows":
        return batch, _up(rows, BLOCK), columns
    return batch, rows, _up(columns, BLOCK) if copy.rht else columns


def _up(size, multiple):
    return -(-size // multiple) * multiple


def programs(shape: tuple[int, ...], tile: Tile) -> int:
    """How many programs a tensor takes."""
    batch, rows, columns = shape
    return batch * -(-rows // tile.rows) * -(-columns // (BLOCK * tile.blocks))


def shape_meta(shape: tuple[int, ...], tile: Tile) -> dict[str, Any]:
    """A tensor and its tile as a kernel's constants."""
    return {
        "ROWS": shape[1],
        "COLUMNS": shape[2],
        "R": tile.rows,
        "N": tile.blocks,
        "G": tile.threads_a_block,
    }


def _tile_meta(x, tile: Tile, round_to_bf16):
    return shape_meta(x.shape, tile) | {"ROUND": round_to_bf16 and x.dtype == jnp.float32}


def amax_meta(copies: tuple[Copy, ...]) -> dict[str, Any]:
    """Of which copies a kernel finds the largest magnitude, as its constants."""
    meta: dict[str, Any] = {"COPIES": len(copies)}
    for i, copy in enumerate((*copies, copies[-1])[:2]):
        meta |= {f"RHT{i}": copy.rht, f"ALONG_ROWS{i}": copy.axis == "rows"}
    return meta


def copy_meta(copy: Copy, rows: int) -> dict[str, Any]:
    """A copy as a kernel's constants; `rows` as in `operands`."""
    return {
        "PITCH": _up(rows, BLOCK) if copy.rht and copy.axis == "rows" else rows,
        "ALONG_ROWS": copy.axis == "rows",
        "SQUARE": copy.square,
        "RHT": copy.rht,
        "BITS": copy.bits,
    }


def check(x: Array, copies: tuple[Copy, ...]) -> None:
    """That a kernel takes such an `x` and makes such copies.

    Raises:
      ValueError: it does not.
    """
    if x.ndim != 3 or x.dtype not in (jnp.bfloat16, jnp.float32) or x.size == 0:
        raise ValueError(
            f"x of shape {x.shape} and dtype {x.dtype}: bf16 or float32 of (batch, rows, columns), "
            "none of them empty, can be quantized here"
        )
    if len(copies) not in (1, 2):
        raise ValueError(f"{len(copies)} copies: one or two are made from one read")
    for copy in copies:
        if copy.bits not in (0, 8, 16, 32):
            raise ValueError(f"bits = {copy.bits}: 0, 8, 16 or 32 are defined")


def call(kernel, inputs, out_shape, *, grid, warps, compute_capability, zeroed_outputs=(), **meta):
    """`kernel` on `inputs`, with `meta` as its constants."""
    return jax_triton.triton_call(
        *inputs,
        kernel=kernel,
        grid=grid,
        num_warps=warps,
        compute_capability=compute_capability,
        zeroed_outputs=zeroed_outputs,
        **_named(out_shape),
        **meta,
    )


def _named(out_shape) -> dict[str, Any]:
    """The results, and that products and sums are fused only where the kernels say so.

    jax-triton 0.4 has other names for both, and takes a name it does not know for the kernel's.
    """
    exact = {"enable_fp_fusion": False}
    if "backend_options" in inspect.signature(jax_triton.triton_call).parameters:
        return {"out_type": out_shape, "backend_options": exact}
    return {"out_shape": out_shape, **exact}

"""The launch of `triton_relu_squared`: what to compute in, arrays out.

As in `launch`, every tensor is (batch, rows, columns), and nothing here knows of quantizers.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, BFloat16, Float32, Int32

from nvfp4_jax.kernels import launch, tiles, triton_relu_squared
from nvfp4_jax.kernels.tiles import Copy, Tile

Tensor = BFloat16[Array, "batch rows columns"]


def relu_squared(
    u: Tensor,
    dr: Tensor | None,
    copies: tuple[Copy, ...],
    signs: Float32[Array, "16"],
    compute_capability: int | None = None,
    *,
    tile: Tile | None = None,
) -> tuple[Tensor, Int32[Array, "copies"]]:
    """relu(u)^2, or with `dr` its gradient 2 relu(u) dr; and `launch.amax_bits` of it.

    Args:
      u: bf16.
      dr: the gradient of what relu(u)^2 is, as u; None for relu(u)^2 itself.
      copies: one or two that will be made of the result.
      signs: the rotation's, read only if a copy is rotated.
      compute_capability: 90 for 9.0; None asks the first device.
      tile: another than that of the table.

    Raises:
      ValueError: a shape, a dtype or a number of copies that this cannot do.
    """
    launch.check(u, copies)
    if u.dtype != jnp.bfloat16 or (dr is not None and (dr.shape, dr.dtype) != (u.shape, u.dtype)):
        given = "" if dr is None else f", its gradient {dr.dtype} of {dr.shape}"
        raise ValueError(f"relu(u)^2 with its amax is for bf16: u is {u.dtype} of {u.shape}{given}")
    tile = tiles.narrowed(tile or tiles.for_amax(copies), u.shape[2])
    out, amax = launch.call(
        triton_relu_squared.relu_squared_kernel,
        (u, signs if dr is None else dr, signs),  # what stands for dr is not read
        [
            jax.ShapeDtypeStruct(u.shape, u.dtype),
            jax.ShapeDtypeStruct((len(copies),), jnp.int32),
        ],
        grid=launch.programs(u.shape, tile),
        warps=tile.warps,
        compute_capability=compute_capability,
        zeroed_outputs=(1,),
        **launch.shape_meta(u.shape, tile),
        **launch.amax_meta(copies),
        GRADIENT=dr is not None,
    )
    return out, amax

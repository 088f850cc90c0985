"""RMSNorm, with or without Mamba-2's gate and groups, as one pass over memory (Triton).

    u = x silu(z)   (or x)       s = 1 / sqrt(mean(u^2) + eps)  over a group of channels
    y = u s weight

Backward, with g = dy * weight and n = u s:

    du = s (g - n mean(g n)),   dx = du silu(z),   dz = du x silu'(z),   dweight = sum of dy n

A program holds a few rows of one group in registers: the forward pass reads x and z and writes y,
the backward pass reads x, z and dy and writes dx and dz, all in the dtype of x. Nothing else is
kept between the two: u and s are computed again. dweight is summed within a program over many
rows, written out as one partial sum each, and added up in a fixed order.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import jax_triton
import triton
import triton.language as tl
from jax import Array
from jax.custom_batching import sequential_vmap

from nvfp4_jax.models.splitting import splitting
from nvfp4_jax.models.target import compute_capability

ELEMENTS, WARPS = 2048, 4  # of a tile, 16 elements a thread
GATED_ELEMENTS, GATED_WARPS = 1024, 2  # backward with a gate, five such tiles: twice as fast so
LONGEST = 16_384  # channels of a group that fit into the registers of a program
PARTS = 2048  # programs that share the rows in the backward pass, over all groups


@triton.jit
def _forward(
    x,
    z,
    weight,
    y,
    EPS: tl.constexpr,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
    GROUP: tl.constexpr,
    Z_STRIDE: tl.constexpr,
    GATED: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = (tl.program_id(0) * TILE + tl.arange(0, TILE)).to(tl.int64)[:, None]
    within = tl.arange(0, BLOCK)
    c = tl.program_id(1) * GROUP + within
    inside = (row < ROWS) & (within < GROUP)[None, :]
    u = tl.load(x + row * CHANNELS + c[None, :], inside, 0.0).to(tl.float32)
    if GATED:
        gate = tl.load(z + row * Z_STRIDE + c[None, :], inside, 0.0).to(tl.float32)
        u = u * (gate * tl.sigmoid(gate))
    scale = tl.rsqrt(tl.sum(u * u, 1) / GROUP + EPS)
    w = tl.load(weight + c, within < GROUP, 0.0).to(tl.float32)
    normed = u * scale[:, None] * w[None, :]
    tl.store(y + row * CHANNELS + c[None, :], normed.to(y.dtype.element_ty), inside)


@triton.jit
def _backward(
    x,
    z,
    weight,
    dy,
    dx,
    dz,
    partial,
    EPS: tl.constexpr,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
    GROUP: tl.constexpr,
    Z_STRIDE: tl.constexpr,
    GATED: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK: tl.constexpr,
    SHARE: tl.constexpr,
):
    within = tl.arange(0, BLOCK)
    c = tl.program_id(1) * GROUP + within
    w = tl.load(weight + c, within < GROUP, 0.0).to(tl.float32)
    first = tl.program_id(0) * SHARE
    dweight = tl.zeros((BLOCK,), tl.float32)
    for begin in range(first, first + SHARE, TILE):
        row = (begin + tl.arange(0, TILE)).to(tl.int64)[:, None]
        inside = (row < ROWS) & (within < GROUP)[None, :]
        at = row * CHANNELS + c[None, :]
        value = tl.load(x + at, inside, 0.0).to(tl.float32)
        slope = tl.load(dy + at, inside, 0.0).to(tl.float32)
        u = value
        if GATED:
            gate = tl.load(z + row * Z_STRIDE + c[None, :], inside, 0.0).to(tl.float32)
            sigma = tl.sigmoid(gate)
            u = value * (gate * sigma)
        scale = tl.rsqrt(tl.sum(u * u, 1) / GROUP + EPS)
        normed = u * scale[:, None]
        dweight += tl.sum(slope * normed, 0)
        g = slope * w[None, :]
        along = tl.sum(g * normed, 1) / GROUP
        du = scale[:, None] * (g - normed * along[:, None])
        if GATED:
            bend = sigma * (1.0 + gate * (1.0 - sigma))
            tl.store(dz + at, (du * value * bend).to(dz.dtype.element_ty), inside)
            du = du * (gate * sigma)
        tl.store(dx + at, du.to(dx.dtype.element_ty), inside)
    at = tl.program_id(0).to(tl.int64) * CHANNELS + c
    tl.store(partial + at, dweight, within < GROUP)


def obstacle(x: Array, groups: int) -> str | None:
    """Why the kernels cannot take these arguments; None if they can."""
    if x.shape[-1] // groups > LONGEST:
        return f"a group has {x.shape[-1] // groups} channels, and the kernel holds {LONGEST}"
    if x.dtype.itemsize > 4:
        return "it computes in FP32"
    return None


def forward(x: Array, z: Array | None, weight: Array, groups: int, eps: float) -> Array:
    """The norm of x (..., d), gated by the first d columns of z (..., at least d)."""
    call, _ = _calls(x.ndim, z is not None, groups, eps, compute_capability())
    (y,) = call(x, weight, *((z,) if z is not None else ()))
    return y


def backward(
    x: Array, z: Array | None, weight: Array, groups: int, eps: float, dy: Array
) -> tuple[Array, Array | None, Array]:
    """Gradients of x, of the first d columns of z, and of the weight (FP32)."""
    _, call = _calls(x.ndim, z is not None, groups, eps, compute_capability())
    if z is None:
        dx, dweight = call(x, weight, dy)
        return dx, None, dweight
    dx, dweight, dz = call(x, weight, z, dy)
    return dx, dz, dweight


@functools.cache
def _calls(ndim: int, gated: bool, groups: int, eps: float, capability: int) -> tuple[Any, Any]:
    """Forward and backward as functions of arrays; split over devices by all axes of rows."""
    rows = "abcdefg"[: ndim - 1] + "."
    arguments = (rows, ".", *((rows,) if gated else ()))

    def forward(x: Array, weight: Array, *gate: Array) -> tuple[Array, ...]:
        count, tile, meta = _meta(x, gate, groups, eps, ELEMENTS, WARPS)
        y = jax_triton.triton_call(
            *(x, *(gate or (x,)), weight),
            kernel=_forward,
            out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype),
            grid=(math.ceil(count / tile), groups),
            compute_capability=capability,
            **meta,
        )
        return (y,)

    def backward(x: Array, weight: Array, *gate_dy: Array) -> tuple[Array, ...]:
        *gate, dy = gate_dy
        size = (GATED_ELEMENTS, GATED_WARPS) if gated else (ELEMENTS, WARPS)
        count, tile, meta = _meta(x, gate, groups, eps, *size)
        share = tile * max(math.ceil(count * groups / (PARTS * tile)), 1)
        parts = math.ceil(count / share)
        dx, dz, partial = jax_triton.triton_call(
            *(x, *(gate or (x,)), weight, dy),
            kernel=_backward,
            out_shape=(
                jax.ShapeDtypeStruct(x.shape, x.dtype),
                jax.ShapeDtypeStruct(x.shape if gated else (1,), x.dtype),
                jax.ShapeDtypeStruct((parts, x.shape[-1]), jnp.float32),
            ),
            grid=(parts, groups),
            compute_capability=capability,
            SHARE=share,
            **meta,
        )
        dweight = jnp.sum(partial, axis=0)
        return (dx, dweight, dz) if gated else (dx, dweight)

    results = (rows, ".", *((rows,) if gated else ()))
    return (
        sequential_vmap(splitting(forward, arguments, (rows,))),
        sequential_vmap(splitting(backward, (*arguments, rows), results, sums=(1,))),
    )


def _meta(
    x: Array, gate: Sequence[Array], groups: int, eps: float, elements: int, warps: int
) -> tuple[int, int, dict]:
    """(rows, rows of a tile, what both kernels are specialized to)."""
    channels = x.shape[-1]
    rows = x.size // channels
    block = 1 << (channels // groups - 1).bit_length()
    tile = max(elements // block, 1)
    meta = {
        "num_warps": max(warps, block // 512),
        "EPS": eps,
        "ROWS": rows,
        "CHANNELS": channels,
        "GROUP": channels // groups,
        "Z_STRIDE": gate[0].shape[-1] if gate else channels,
        "GATED": bool(gate),
        "TILE": tile,
        "BLOCK": block,
    }
    return rows, tile, meta

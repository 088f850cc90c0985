"""The causal convolution and SiLU as one pass over memory, forward and backward (Triton).

A program owns BLOCK channels of one row and walks along the tokens. The taps are its registers:
the three tokens before this one are the ones it has just seen, so every value is read from memory
once. It reads UNROLL tokens ahead before it computes, to keep enough reads in flight. It reads its
columns out of the wider output of in_proj and writes x, B and C as arrays of their own, so that
nothing is copied before or after.

Backward, with a = conv(x) + bias, y = a * sigmoid(a):

    da[t] = dy[t] * s (1 + a (1 - s)),  s = sigmoid(a[t])          a is computed again from x
    dx[t] = sum over d of  weight[3 - d] * da[t + d]               within the document
    dweight[3 - d] = sum over t of  da[t] * x[t - d],   dbias = sum over t of da[t]

A program needs da of the three tokens after its own, which it computes as well; it writes dx three
tokens late. Each program writes its own partial sum of dweight and dbias, added up afterwards in a
fixed order: the gradient is the same at every run.
"""

from __future__ import annotations

import functools
import math
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

WIDTH = 4  # taps; the walk below is written out for them
BLOCK = 256  # channels at most: four a thread, eight bytes of bfloat16 a read
SMALLEST = 64  # channels of a program that still read whole lines of memory
WARPS = 2
UNROLL = 4
TOKENS = 128  # a program, forward; backward the same, the last three for its neighbour's sake


@triton.jit
def _part(
    x,
    b,
    c,
    CHANNELS: tl.constexpr,
    WIDTH_X: tl.constexpr,
    WIDTH_B: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The array that holds this program's channels, its width, and the columns there.

    The branches hide from the compiler that all are aligned, and with it reads of eight bytes.
    """
    first = tl.program_id(0) * BLOCK
    array, width = x, WIDTH_X
    if first >= WIDTH_X + WIDTH_B:
        array, width = c, CHANNELS - WIDTH_X - WIDTH_B
        first -= WIDTH_X + WIDTH_B
    elif first >= WIDTH_X:
        array, width = b, WIDTH_B
        first -= WIDTH_X
    first = tl.multiple_of(first, BLOCK)
    return tl.multiple_of(array, 16), tl.multiple_of(width, BLOCK), first + tl.arange(0, BLOCK)


@triton.jit
def _forward(
    x,
    weight,
    bias,
    segments,
    y,
    y_b,
    y_c,
    LENGTH: tl.constexpr,
    STRIDE: tl.constexpr,
    START: tl.constexpr,
    CHANNELS: tl.constexpr,
    WIDTH_X: tl.constexpr,
    WIDTH_B: tl.constexpr,
    PACKED: tl.constexpr,
    BLOCK: tl.constexpr,
    TOKENS: tl.constexpr,
    UNROLL: tl.constexpr,
):
    c = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    y, width, column = _part(y, y_b, y_c, CHANNELS, WIDTH_X, WIDTH_B, BLOCK)
    first = tl.program_id(1) * TOKENS
    row = tl.program_id(2).to(tl.int64) * LENGTH
    w0 = tl.load(weight + c).to(tl.float32)
    w1 = tl.load(weight + CHANNELS + c).to(tl.float32)
    w2 = tl.load(weight + 2 * CHANNELS + c).to(tl.float32)
    w3 = tl.load(weight + 3 * CHANNELS + c).to(tl.float32)
    b = tl.load(bias + c).to(tl.float32)
    at = x + row * STRIDE + START + c
    x1 = tl.load(at + (first - 1) * STRIDE, first > 0, 0.0).to(tl.float32)
    x2 = tl.load(at + (first - 2) * STRIDE, first > 0, 0.0).to(tl.float32)
    x3 = tl.load(at + (first - 3) * STRIDE, first > 0, 0.0).to(tl.float32)
    s1, s2, s3 = 0, 0, 0
    if PACKED:
        s1 = tl.load(segments + row + first - 1, first > 0, 0)
        s2 = tl.load(segments + row + first - 2, first > 0, 0)
        s3 = tl.load(segments + row + first - 3, first > 0, 0)
    for begin in range(first, first + TOKENS, UNROLL):
        ahead = ()
        for i in tl.static_range(UNROLL):
            here = begin + i < LENGTH
            ahead += (tl.load(at + (begin + i) * STRIDE, here, 0.0),)
        for i in tl.static_range(UNROLL):
            t = begin + i
            x0 = ahead[i].to(tl.float32)
            if PACKED:
                s0 = tl.load(segments + row + t, t < LENGTH, 0)
                a = x0 * w3 + tl.where(s1 == s0, x1, 0.0) * w2
                a += tl.where(s2 == s0, x2, 0.0) * w1
                a += tl.where(s3 == s0, x3, 0.0) * w0
                s1, s2, s3 = s0, s1, s2
            else:
                a = x0 * w3 + x1 * w2 + x2 * w1 + x3 * w0
            a += b
            out = y + tl.multiple_of((row + t) * width, BLOCK) + column
            tl.store(out, (a * tl.sigmoid(a)).to(y.dtype.element_ty), t < LENGTH)
            x1, x2, x3 = x0, x1, x2


@triton.jit
def _backward(
    x,
    weight,
    bias,
    segments,
    dy,
    dy_b,
    dy_c,
    dx,
    partial,
    LENGTH: tl.constexpr,
    STRIDE: tl.constexpr,
    START: tl.constexpr,
    CHANNELS: tl.constexpr,
    WIDTH_X: tl.constexpr,
    WIDTH_B: tl.constexpr,
    PACKED: tl.constexpr,
    BLOCK: tl.constexpr,
    TOKENS: tl.constexpr,
    UNROLL: tl.constexpr,
):
    c = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    dy, width, column = _part(dy, dy_b, dy_c, CHANNELS, WIDTH_X, WIDTH_B, BLOCK)
    OWN: tl.constexpr = TOKENS - 3
    first = tl.program_id(1) * OWN
    row = tl.program_id(2).to(tl.int64) * LENGTH
    w0 = tl.load(weight + c).to(tl.float32)
    w1 = tl.load(weight + CHANNELS + c).to(tl.float32)
    w2 = tl.load(weight + 2 * CHANNELS + c).to(tl.float32)
    w3 = tl.load(weight + 3 * CHANNELS + c).to(tl.float32)
    b = tl.load(bias + c).to(tl.float32)
    at = x + row * STRIDE + START + c
    x1 = tl.load(at + (first - 1) * STRIDE, first > 0, 0.0).to(tl.float32)
    x2 = tl.load(at + (first - 2) * STRIDE, first > 0, 0.0).to(tl.float32)
    x3 = tl.load(at + (first - 3) * STRIDE, first > 0, 0.0).to(tl.float32)
    s1, s2, s3 = 0, 0, 0
    if PACKED:
        s1 = tl.load(segments + row + first - 1, first > 0, 0)
        s2 = tl.load(segments + row + first - 2, first > 0, 0)
        s3 = tl.load(segments + row + first - 3, first > 0, 0)
    zero = tl.zeros((BLOCK,), tl.float32)
    d1, d2, d3 = zero, zero, zero  # da of the three tokens before this one
    g0, g1, g2, g3, gb = zero, zero, zero, zero, zero
    for begin in range(first, first + TOKENS, UNROLL):
        ahead, slopes = (), ()
        for i in tl.static_range(UNROLL):
            here = begin + i < LENGTH
            ahead += (tl.load(at + (begin + i) * STRIDE, here, 0.0),)
            slopes += (tl.load(dy + (row + begin + i) * width + column, here, 0.0),)
        for i in tl.static_range(UNROLL):
            t = begin + i
            x0 = ahead[i].to(tl.float32)
            p1, p2, p3 = x1, x2, x3
            if PACKED:
                s0 = tl.load(segments + row + t, t < LENGTH, -1)
                p1 = tl.where(s1 == s0, x1, 0.0)
                p2 = tl.where(s2 == s0, x2, 0.0)
                p3 = tl.where(s3 == s0, x3, 0.0)
            a = x0 * w3 + p1 * w2 + p2 * w1 + p3 * w0 + b
            sigma = tl.sigmoid(a)
            d0 = slopes[i].to(tl.float32) * sigma * (1.0 + a * (1.0 - sigma))
            # dx of the token three back, the last of whose four terms is d0
            e0, e1, e2 = d0, d1, d2
            if PACKED:
                e0 = tl.where(s3 == s0, d0, 0.0)
                e1 = tl.where(s3 == s1, d1, 0.0)
                e2 = tl.where(s3 == s2, d2, 0.0)
            late = d3 * w3 + e2 * w2 + e1 * w1 + e0 * w0
            mine = (t - 3 >= first) & (t - 3 < LENGTH)
            out = dx + (row + t - 3) * CHANNELS + c
            tl.store(out, late.to(dx.dtype.element_ty), mine)
            own = tl.where(t < first + OWN, d0, 0.0)
            g3 += own * x0
            g2 += own * p1
            g1 += own * p2
            g0 += own * p3
            gb += own
            if PACKED:
                s1, s2, s3 = s0, s1, s2
            x1, x2, x3 = x0, x1, x2
            d1, d2, d3 = d0, d1, d2
    part = tl.program_id(2) * tl.num_programs(1) + tl.program_id(1)
    sums = partial + part.to(tl.int64) * 5 * CHANNELS + c
    tl.store(sums, g0)
    tl.store(sums + CHANNELS, g1)
    tl.store(sums + 2 * CHANNELS, g2)
    tl.store(sums + 3 * CHANNELS, g3)
    tl.store(sums + 4 * CHANNELS, gb)


def obstacle(x: Array, weight: Array, widths: tuple[int, ...]) -> str | None:
    """Why the kernels cannot take these arguments; None if they can."""
    if weight.shape[0] != WIDTH:
        return f"the convolution has {weight.shape[0]} taps, and the kernel is for {WIDTH}"
    if len(widths) != 3 or _block(widths) < SMALLEST:
        return f"the channels are split as {widths}, not into three multiples of {SMALLEST}"
    if x.dtype.itemsize > 4:
        return "it computes in FP32"
    return None


def forward(
    x: Array,
    weight: Array,
    bias: Array,
    segments: Array | None,
    start: int,
    widths: tuple[int, ...],
) -> tuple[Array, ...]:
    """silu(conv(x[..., start:start + channels]) + bias), cut into `widths`."""
    packed = segments is not None
    call, _ = _calls(start, widths, packed, compute_capability())
    return call(x, weight, bias, *((segments,) if segments is not None else ()))


def backward(
    x: Array,
    weight: Array,
    bias: Array,
    segments: Array | None,
    start: int,
    dy: tuple[Array, ...],
) -> tuple[Array, Array, Array]:
    """Gradients of the convolved columns of x, of the weight and of the bias (FP32)."""
    widths, packed = tuple(part.shape[-1] for part in dy), segments is not None
    _, call = _calls(start, widths, packed, compute_capability())
    return call(x, weight, bias, *((segments,) if segments is not None else ()), *dy)


@functools.cache
def _calls(start: int, widths: tuple[int, ...], packed: bool, capability: int) -> tuple[Any, Any]:
    """Forward and backward as functions of arrays; split over devices by rows of the batch."""
    arguments, rows = ("b..", "..", ".", *(("b.",) if packed else ())), ("b..",) * len(widths)

    def launch(kernel, own, outs, x, weight, bias, *rest):
        segments, dy = (rest[0], rest[1:]) if packed else (jnp.zeros((1,), jnp.int32), rest)
        sizes = _sizes(x, packed, start, widths, own)
        meta = {"kernel": kernel, "compute_capability": capability, "out_shape": outs, **sizes}
        return tuple(jax_triton.triton_call(x, weight, bias, segments, *dy, **meta))

    def forward(x: Array, *rest: Array) -> tuple[Array, ...]:
        outs = tuple(jax.ShapeDtypeStruct((*x.shape[:2], width), x.dtype) for width in widths)
        return launch(_forward, TOKENS, outs, x, *rest)

    def backward(x: Array, *rest: Array) -> tuple[Array, ...]:
        (batch, length, _), channels, own = x.shape, sum(widths), TOKENS - 3
        outs = (
            jax.ShapeDtypeStruct((batch, length, channels), x.dtype),
            jax.ShapeDtypeStruct((batch * math.ceil(length / own), 5, channels), jnp.float32),
        )
        dx, partial = launch(_backward, own, outs, x, *rest)
        sums = jnp.sum(partial, axis=0)
        return dx, sums[:WIDTH], sums[WIDTH]

    return (
        sequential_vmap(splitting(forward, arguments, rows)),
        sequential_vmap(splitting(backward, arguments + rows, ("b..", "..", "."), sums=(1, 2))),
    )


def _block(widths: tuple[int, ...]) -> int:
    """Channels of a program: the largest power of two up to BLOCK that divides every part."""
    return math.gcd(BLOCK, *widths)


def _sizes(x: Array, packed: bool, start: int, widths: tuple[int, ...], own: int) -> dict:
    """The grid, warps and constants of a kernel whose programs make `own` tokens each."""
    batch, length, features = x.shape
    block = _block(widths)
    return {
        "grid": (sum(widths) // block, math.ceil(length / own), batch),
        "num_warps": max(WARPS * block // BLOCK, 1),
        "LENGTH": length,
        "STRIDE": features,
        "START": start,
        "CHANNELS": sum(widths),
        "WIDTH_X": widths[0],
        "WIDTH_B": widths[1],
        "PACKED": packed,
        "BLOCK": block,
        "TOKENS": TOKENS,
        "UNROLL": UNROLL,
    }

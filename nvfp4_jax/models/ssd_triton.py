"""The fused scan as a differentiable function of JAX arrays.

Under automatic sharding each device runs the kernels on its part of the batch and of the groups of
heads; length, head dim and state are whole on every device. Under `vmap`, the examples run one
after the other. Forward-mode differentiation raises, as with every custom_vjp.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import jax_triton
from jax import Array
from jax.custom_batching import sequential_vmap

from nvfp4_jax.models import ssd_fused, ssd_sharding, ssd_tiles
from nvfp4_jax.models.ssd_fused import Decays, Plan
from nvfp4_jax.models.ssd_tiles import Launch, Sizes
from nvfp4_jax.models.target import compute_capability

Static = tuple[int, bool, int]  # tokens of a chunk, whether documents are packed, capability


def scan(
    x: Array,
    dt: Array,
    A: Array,
    B: Array,
    C: Array,
    D: Array,
    *,
    chunk: int,
    seq_idx: Array | None,
    start: Array,
) -> tuple[Array, Array]:
    """`ssd` with dt, A, D and the initial state in FP32, and B and C in the dtype of x."""
    packed = seq_idx is not None
    documents = seq_idx.astype(jnp.int32) if packed else jnp.zeros((x.shape[0], 1), jnp.int32)
    static = (ssd_tiles.chunk(chunk, x.shape[1], x.dtype), packed, compute_capability())
    return _scan(static, x, dt, A, B, C, D, documents, start)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _scan(static: Static, *arguments: Array) -> tuple[Array, Array]:
    y, final, *_ = _kernels(*static)[0](*arguments)
    return y, final


def _forward(static: Static, *arguments: Array):
    y, final, *kept = _kernels(*static)[0](*arguments)
    x, _, A, B, C, D, documents, _ = arguments
    return (y, final), (x, A, B, C, D, documents, *kept)


def _backward(static: Static, kept: Sequence[Array], cotangents: Sequence[Array]):
    dx, ddt, dA, dB, dC, dD, start = _kernels(*static)[1](*kept, *cotangents)
    return dx, ddt, jnp.sum(dA, axis=0), dB, dC, jnp.sum(dD, axis=0), None, start


_scan.defvjp(_forward, _backward)


@functools.cache
def _kernels(chunk: int, packed: bool, capability: int) -> tuple[Any, Any]:
    """Forward and backward as functions of arrays only, sharded and mapped as said above."""
    call = functools.partial(launch, capability)

    def plan(x: Array, B: Array) -> Plan:
        sizes = Sizes(*x.shape[:3], B.shape[2], x.shape[3], B.shape[3])
        return Plan(call, sizes, ssd_tiles.tiles(x.dtype, capability), chunk, packed)

    def forward(x: Array, dt: Array, A: Array, B: Array, *rest: Array) -> tuple[Array, ...]:
        y, final, decays, states = ssd_fused.forward(plan(x, B), x, dt, A, B, *rest)
        return y, final, *decays, states

    def backward(x: Array, A: Array, B: Array, C: Array, D: Array, documents: Array, *kept: Array):
        *decays, states, dy, dfinal = kept
        return ssd_fused.backward(
            plan(x, B), x, A, B, C, D, documents, Decays(*decays), states, dy, dfinal
        )

    return (
        sequential_vmap(ssd_sharding.forward(forward)),
        sequential_vmap(ssd_sharding.backward(backward)),
    )


def launch(
    capability: int,
    kernel: Any,
    arguments: Sequence[Array],
    results: Sequence[jax.ShapeDtypeStruct],
    grid: tuple[int, int, int],
    launch: Launch,
    constants: dict[str, int | bool],
) -> Sequence[Array]:
    """Enqueue a kernel on the GPU that is traced for."""
    return jax_triton.triton_call(
        *arguments,
        kernel=kernel,
        out_shape=list(results),
        grid=grid,
        name=kernel.__name__,
        num_warps=launch.warps,
        num_stages=launch.stages,
        compute_capability=capability,
        **constants,
    )

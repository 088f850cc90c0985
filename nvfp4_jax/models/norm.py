"""RMSNorm: divide by the root mean square, multiply by a weight.

    y = x / sqrt(mean(x^2) + eps) * weight

The statistics are FP32 whatever the dtype of x: a sum of 5120 squares does not fit into the eight
bits of a bfloat16. The weight is the multiplier itself (it starts at 1), not its distance from 1.

On a GPU a kernel (`norm_triton`) does each direction in one pass over memory.
"""

from __future__ import annotations

import functools
from typing import cast

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array, lax
from jax.typing import DTypeLike

from nvfp4_jax.models.pieces import in_pieces
from nvfp4_jax.models.product import accumulator
from nvfp4_jax.models.target import Implementation, choose, rounded


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _normalize(x: Array, eps: float) -> Array:
    return _forward(x, eps)[0]


def _forward(x: Array, eps: float) -> tuple[Array, tuple[Array, Array]]:
    scale = lax.rsqrt(jnp.mean(rounded(jnp.square(x)), axis=-1, keepdims=True) + eps)
    return x * scale, (x, scale)


def _backward(eps: float, kept: tuple[Array, Array], dy: Array) -> tuple[Array]:
    x, scale = kept
    along = jnp.mean(rounded(dy * x), axis=-1, keepdims=True)
    return (rounded(dy * scale) - rounded(x * (scale**3 * along)),)


_normalize.defvjp(_forward, _backward)


def normalize(x: Array, eps: float) -> Array:
    """x / sqrt(mean(x^2) + eps) over the last axis; x is already FP32 (or float64).

    With s = 1 / sqrt(mean(x^2) + eps) the gradient is dx = s dy - s^3 mean(dy x) x. Written out it
    takes a third fewer passes over memory than what differentiating each step gives.
    """
    return cast(Array, _normalize(x, eps))


def rms_norm(
    x: Array,
    weight: Array,
    *,
    eps: float,
    gate: Array | None = None,
    groups: int = 1,
    implementation: Implementation | None = None,
) -> Array:
    """RMSNorm of x, or of x * silu(gate), over each of `groups` runs of channels.

    The backward pass keeps x and the gate as they are and computes the rest again: an FP32 copy
    of either would take more memory than everything else that a Mamba layer keeps.

    Args:
      x: (..., d).
      weight: (d,).
      eps: added to the mean square.
      gate: (..., at least d); its first d columns are the gate.
      groups: a divisor of d.
      implementation: `xla`, `triton`, or None for the faster one that can run.

    Returns:
      (..., d) in the dtype of x.

    Raises:
      ValueError: `triton` where it cannot run, saying why.
    """
    chosen = choose(implementation, functools.partial(_obstacle, x, groups), "RMSNorm")
    return cast(Array, _rms_norm(x, gate, weight, groups, eps, chosen))


def _obstacle(x: Array, groups: int) -> str | None:
    from nvfp4_jax.models import norm_triton

    return norm_triton.obstacle(x, groups)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def _rms_norm(
    x: Array,
    gate: Array | None,
    weight: Array,
    groups: int,
    eps: float,
    implementation: Implementation,
) -> Array:
    if implementation == "triton":
        from nvfp4_jax.models import norm_triton

        return norm_triton.forward(x, gate, weight, groups, eps)
    return _definition(x, gate, weight, groups, eps)


def _definition(x: Array, gate: Array | None, weight: Array, groups: int, eps: float) -> Array:
    wide = x.astype(accumulator(x.dtype))
    if gate is not None:
        wide = wide * nnx.silu(gate[..., : x.shape[-1]].astype(wide.dtype))
    grouped = wide.reshape(*wide.shape[:-1], groups, -1)
    normed = normalize(grouped, eps).reshape(wide.shape)
    return (normed * _along(weight, normed)).astype(x.dtype)


def _along(weight: Array, x: Array) -> Array:
    """A weight (features,) with the rank and dtype of x."""
    return weight.astype(x.dtype).reshape((1,) * (x.ndim - 1) + weight.shape)


def _norm_forward(x, gate, weight, groups, eps, implementation):
    return _rms_norm(x, gate, weight, groups, eps, implementation), (x, gate, weight)


def _norm_backward(groups: int, eps: float, implementation: Implementation, kept, dy: Array):
    x, gate, weight = kept
    if implementation == "xla":
        _, pull = jax.vjp(lambda x, z, w: _definition(x, z, w, groups, eps), x, gate, weight)
        return pull(dy)
    from nvfp4_jax.models import norm_triton

    dx, dgate, dweight = norm_triton.backward(x, gate, weight, groups, eps, dy)
    if gate is not None and dgate is not None:
        others = gate.shape[-1] - x.shape[-1]
        dgate = jnp.pad(dgate, [(0, 0)] * (x.ndim - 1) + [(0, others)])
    return dx, dgate, dweight.astype(weight.dtype)


_rms_norm.defvjp(_norm_forward, _norm_backward)


class RMSNorm(nnx.Module):
    """RMSNorm over the last axis; the result has the dtype of x."""

    def __init__(self, features: int, *, eps: float, param_dtype: DTypeLike):
        self.weight = nnx.Param(jnp.ones((features,), param_dtype))
        self.eps = eps

    def __call__(self, x: Array) -> Array:
        norm = functools.partial(rms_norm, eps=self.eps)
        return in_pieces(norm, (x, None), (self.weight[...], None), result=None)


class GatedGroupNorm(nnx.Module):
    """Mamba-2's output norm: the gate first, then RMSNorm over each group of channels.

        u = y * silu(z);   result = u / rms(u, within its group) * weight

    A group is d/G consecutive channels, so that a group of heads can live on one device and
    normalize without asking the others.
    """

    def __init__(self, features: int, groups: int, *, eps: float, param_dtype: DTypeLike):
        self.weight = nnx.Param(jnp.ones((features,), param_dtype))
        self.groups = groups
        self.eps = eps

    def __call__(self, y: Array, z: Array) -> Array:
        """y (..., d), z (..., at least d), its first d columns the gate; as y in dtype."""
        channels, last = self.weight.size // self.groups, y.ndim - 1

        def norm(y: Array, z: Array, weight: Array) -> Array:
            return rms_norm(y, weight, eps=self.eps, gate=z, groups=weight.size // channels)

        return in_pieces(norm, (y, last), (z, last), (self.weight[...], 0), result=last)

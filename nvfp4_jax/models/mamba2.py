"""The Mamba-2 mixer: one wide projection in, a short convolution, the scan, one projection out.

    z, x, B, C, dt = split(in_proj(u))
    x, B, C = silu(conv(x, B, C))
    dt = clip(softplus(dt + dt_bias), dt_limit);  A = -exp(A_log)
    y = scan(x, dt, A, B, C, D)
    out_proj(norm(y * silu(z)))

`in_proj` and `out_proj` hold nearly all its parameters and FLOPs, and a recipe governs them; what
is between stays high, with dt and A in FP32, since they go through exp.

Source: arXiv 2405.21060, section 7; Nemotron-H, arXiv 2504.03624.
"""

from __future__ import annotations

import itertools
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from nvfp4_jax.models import initialization
from nvfp4_jax.models.config import HybridConfig
from nvfp4_jax.models.conv import CausalConv
from nvfp4_jax.models.linear import linear
from nvfp4_jax.models.norm import GatedGroupNorm
from nvfp4_jax.models.pieces import in_pieces
from nvfp4_jax.models.placement import is_cut, place
from nvfp4_jax.models.product import accumulator
from nvfp4_jax.models.ssd import ssd


class Mamba2(nnx.Module):
    """u (batch, length, hidden) to the same shape."""

    def __init__(
        self, config: HybridConfig, *, dtype: DTypeLike, param_dtype: DTypeLike, rngs: nnx.Rngs
    ):
        common = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        inner, heads = config.mamba_inner, config.mamba_heads
        self.config = config
        self.in_proj = linear(
            config.hidden, config.in_proj_features, sigma=config.init_sigma, **common
        )
        self.conv = CausalConv(
            config.conv_channels, config.conv_width, param_dtype=param_dtype, rngs=rngs
        )
        self.A_log = nnx.Param(initialization.a_log(rngs.params(), heads, param_dtype))
        self.D = nnx.Param(jnp.ones((heads,), param_dtype))
        self.dt_bias = nnx.Param(initialization.dt_bias(rngs.params(), heads, param_dtype))
        self.norm = GatedGroupNorm(
            inner, config.groups, eps=config.norm_eps, param_dtype=param_dtype
        )
        self.out_proj = linear(
            inner, config.hidden, sigma=initialization.residual_sigma(config), **common
        )

    def __call__(self, u: Array, segment_ids: Array | None = None) -> Array:
        """segment_ids (batch, length): convolution and state stop at a boundary."""
        projected = self.in_proj(u)
        convolved = self._cut_by_heads if is_cut("heads") else self._read_in_place
        z, x, B, C, dt = convolved(projected, segment_ids)
        y = self.norm(self._scanned(x, B, C, dt, segment_ids), z)
        return self.out_proj(place(y, "batch", "length", "features"))

    def _read_in_place(self, projected: Array, segment_ids: Array | None) -> tuple[Array, ...]:
        """(z and more, x, B, C, dt), x, B and C convolved: no column is copied to be read."""
        inner, width = self._widths
        x, B, C = self.conv(projected, segment_ids, start=inner, widths=(inner, width, width))
        return projected, x, B, C, projected[..., -self.config.mamba_heads :]

    def _cut_by_heads(self, projected: Array, segment_ids: Array | None) -> tuple[Array, ...]:
        """The same, with whole rows and the heads cut over devices: each has columns of each."""
        inner, width = self._widths
        ends = itertools.accumulate((inner, inner, width, width))
        parts = jnp.split(projected, list(ends), axis=-1)
        z, x, B, C, dt = (place(part, "batch", "whole", "heads") for part in parts)
        return z, *self.conv.of_parts((x, B, C), segment_ids), dt

    @property
    def _widths(self) -> tuple[int, int]:
        """Columns of z and of x; of B and of C."""
        return self.config.mamba_inner, self.config.groups * self.config.state

    def _scanned(self, x: Array, B: Array, C: Array, dt: Array, segment_ids: Array | None) -> Array:
        """(batch, length, d): the state-space scan of the convolved x, B and C."""
        heads = (self.dt_bias[...], 0), (self.A_log[...], 0), (self.D[...], 0)
        tokens = (x, 2), (B, 2), (C, 2), (dt, 2)
        return in_pieces(self._scan, *tokens, *heads, (segment_ids, None), result=2)

    def _scan(
        self,
        x: Array,
        B: Array,
        C: Array,
        dt: Array,
        dt_bias: Array,
        A_log: Array,
        D: Array,
        segment_ids: Array | None,
    ) -> Array:
        """The same of some heads, or all."""
        config = self.config
        x, B, C = (
            part.reshape(*part.shape[:2], -1, width)
            for part, width in zip(
                (x, B, C), (config.mamba_head_dim, config.state, config.state), strict=True
            )
        )
        dt = self._steps(dt, dt_bias)
        A = -jnp.exp(A_log.astype(dt.dtype))
        y, _ = ssd(x, dt, A, B, C, D, chunk=config.chunk, seq_idx=segment_ids)
        return y.reshape(*y.shape[:2], -1)

    def _steps(self, dt: Array, bias: Array) -> Array:
        """softplus(dt + bias) within dt_limit, (batch, length, H), FP32."""
        low, high = self.config.dt_limit
        dt = dt.astype(accumulator(dt.dtype))
        dt = jax.nn.softplus(dt + bias.astype(dt.dtype)[None, None])
        return dt if (low, high) == (0, math.inf) else jnp.clip(dt, low, high)

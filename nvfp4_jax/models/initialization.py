"""Initial values that are not plain normal draws.

Weights that write into the residual stream (`out_proj`, `down`, `o`) are drawn smaller, by
1 / sqrt(number of mixers), so that the variance of the stream does not grow with depth (GPT-2's
rule; with one mixer a block the number of mixers is the number of blocks).

Mamba's own parameters start so that its heads remember over different spans: a decay exp(dt A)
with dt log-uniform in 1e-3..1e-1 and -A uniform in 1..16 forgets over 0.6 to 1000 tokens.

Source: Mamba-2 (arXiv 2405.21060) and its reference code; Nemotron-H (arXiv 2504.03624).
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from nvfp4_jax.models.config import HybridConfig

DT_RANGE = (1e-3, 1e-1)
DT_FLOOR = 1e-4
A_RANGE = (1.0, 16.0)


def residual_sigma(config: HybridConfig) -> float:
    """Standard deviation of the linears whose output is added to the residual stream."""
    return config.init_sigma / math.sqrt(len(config.pattern))


def a_log(key: Array, heads: int, dtype: DTypeLike) -> Array:
    """log(-A), (heads,), with -A uniform in 1..16."""
    return jnp.log(jax.random.uniform(key, (heads,), dtype, *A_RANGE))


def dt_bias(key: Array, heads: int, dtype: DTypeLike) -> Array:
    """b with softplus(b) = dt, (heads,), where dt is log-uniform in 1e-3..1e-1, at least 1e-4.

    The inverse of softplus is dt + log(-expm1(-dt)), which stays exact for small dt.
    """
    low, high = map(math.log, DT_RANGE)
    dt = jnp.maximum(jnp.exp(jax.random.uniform(key, (heads,), dtype, low, high)), DT_FLOOR)
    return dt + jnp.log(-jnp.expm1(-dt))


def conv_uniform(key: Array, shape: tuple[int, ...], width: int, dtype: DTypeLike) -> Array:
    """Uniform in +-1/sqrt(width): a depthwise filter's fan-in is its number of taps."""
    bound = 1 / math.sqrt(width)
    return jax.random.uniform(key, shape, dtype, -bound, bound)

"""A model small enough to compile in a second, with every mixer and ragged sizes."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from nvfp4_jax import models

CONFIG = models.HybridConfig(
    pattern="M*-",
    hidden=16,
    vocabulary=11,
    ffn=24,
    attention_heads=4,
    kv_heads=2,
    head_dim=6,
    mamba_heads=4,
    mamba_head_dim=6,
    state=5,
    groups=2,
    chunk=8,
)


def build(dtype=jnp.float32, seed: int = 0, **changes) -> models.Hybrid:
    """A model whose every parameter is random and large enough to have a say.

    Filled by NumPy: compiling the initialization would take most of the tests' time.
    """
    config = replace(CONFIG, **changes)
    graph, state = nnx.split(
        nnx.eval_shape(lambda: models.Hybrid(config, rngs=nnx.Rngs(0), dtype=dtype))
    )
    rng = np.random.default_rng(seed)
    filled = [
        (path, variable.replace(_values(rng, str(path[-1]), variable.shape)))
        for path, variable in nnx.to_flat_state(state)
    ]
    return nnx.merge(graph, nnx.from_flat_state(filled))


def _values(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> jax.Array:
    mean, sigma = {"A_log": (0.5, 0.5), "dt_bias": (-2, 1), "D": (1, 0.2)}.get(name, (0, 0.3))
    if name == "weight" and len(shape) == 1:  # of a norm
        mean, sigma = 1, 0.2
    return jnp.asarray(mean + sigma * rng.standard_normal(shape), jnp.float32)


def tokens(batch: int, length: int, seed: int = 1) -> jax.Array:
    return jax.random.randint(jax.random.key(seed), (batch, length), 0, CONFIG.vocabulary)


@nnx.jit
def run(model: models.Hybrid, row: jax.Array, segment_ids: jax.Array | None = None) -> jax.Array:
    """Logits, compiled: operation by operation takes several times as long."""
    return model(row, segment_ids)


def gap(actual, expected) -> float:
    """||actual - expected|| / ||expected||, in float64."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))

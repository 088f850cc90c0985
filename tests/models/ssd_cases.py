"""Inputs of the scan, and its results and gradients in float64, for tests of the fused kernels."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nvfp4_jax.models.ssd import ssd

INPUTS = ("x", "dt", "A", "B", "C", "D", "h0")
RESULTS = ("y", "final_state", *(f"g_{name}" for name in INPUTS))


class Case(NamedTuple):
    """float64: inputs in the order of INPUTS, cotangents of y and of the final state."""

    inputs: list[np.ndarray]
    cotangents: list[np.ndarray]
    seq_idx: np.ndarray | None


def draw(batch, length, heads, head_dim, groups, state, *, packed: bool, seed: int = 0) -> Case:
    """Decays as a model has them (dt 1e-3..1e-1, A -16..-1), documents of some 20 tokens."""
    rng = np.random.default_rng(seed)
    x, dy = (rng.standard_normal((batch, length, heads, head_dim)) for _ in range(2))
    dt = np.exp(rng.uniform(np.log(1e-3), np.log(1e-1), (batch, length, heads)))
    A, D = -rng.uniform(1, 16, heads), rng.standard_normal(heads)
    B, C = (rng.standard_normal((batch, length, groups, state)) for _ in range(2))
    h0, dfinal = (rng.standard_normal((batch, heads, head_dim, state)) for _ in range(2))
    documents = 7 + np.cumsum(rng.random((batch, length)) < 0.05, axis=1)
    seq_idx = documents.astype(np.int32) if packed else None
    return Case([x, dt, A, B, C, D, h0], [dy, dfinal], seq_idx)


def results(case: Case, dtypes, chunk: int, **options) -> list[np.ndarray]:
    """RESULTS by `ssd`; `dtypes`: of x, B, C and y, and of the rest."""
    low, high = dtypes
    places = [low if name in ("x", "B", "C") else high for name in INPUTS]
    inputs = [jnp.asarray(a, d) for a, d in zip(case.inputs, places, strict=True)]
    cotangents = tuple(jnp.asarray(a, d) for a, d in zip(case.cotangents, dtypes, strict=True))
    seq_idx = None if case.seq_idx is None else jnp.asarray(case.seq_idx)

    @jax.jit
    def run(inputs, cotangents):
        def forward(*a):
            return ssd(*a[:-1], chunk=chunk, seq_idx=seq_idx, initial_state=a[-1], **options)

        out, pull = jax.vjp(forward, *inputs)
        return *out, *pull(cotangents)

    return [np.asarray(part) for part in run(inputs, cotangents)]


def exact(case: Case, chunk: int = 32) -> list[np.ndarray]:
    """RESULTS of the XLA form in float64."""
    with jax.enable_x64(True):
        return results(case, (jnp.float64, jnp.float64), chunk, implementation="xla")

"""The Blackwell GEMM's body, executed on a machine of Python (see blackwell_machine).

Not a line of the body is replaced: tiles, index maps, stages, phases, the two accumulators that
overlap, the scales of a pair and the order of the epilogue's roundings are what the GPU would run.
Speed, and what the real tensor core does with the operands, are not shown by this.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from nvfp4_jax.kernels.blackwell_gemm_tiling import LANES, TILINGS, Problem, Tiling
from tests.kernels import blackwell_machine
from tests.kernels.blackwell_machine import Deadlock

BF16, F32 = np.dtype(ml_dtypes.bfloat16), np.dtype(np.float32)
SCALARS = np.float32(0.3), np.float32(1e-3)
PAIR, NARROW, SINGLE = TILINGS


def operand(random, rows: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Values of E2M1 codes and of E4M3 scales, of which any FP32 sum here is exact."""
    signs = random.choice([-1, 1], (rows, k))
    codes = signs * random.choice([0, 0.5, 1, 1.5, 2, 3, 4, 6], (rows, k))
    scales = random.choice([0.5, 1, 2], (rows, k // 16))
    return codes.astype(np.float32), scales.astype(np.float32)


def swizzled(scales: np.ndarray) -> np.ndarray:
    """Row r, block j at [r // 128, j // 4, r % 32, r % 128 // 32, j % 4]; 512-byte tiles in two."""
    rows, blocks = scales.shape
    tiles = np.zeros((-(-rows // LANES), blocks // 4, 32, 4, 4), np.float32)
    r, j = np.indices(scales.shape)
    tiles[r // 128, j // 4, r % 32, r % 128 // 32, j % 4] = scales
    return tiles.reshape(*tiles.shape[:2], 2, 256)


def differs(monkeypatch, tiling, dtype, shape, clusters, seed, forgotten=None) -> bool:
    """Whether any element of the output is not ((a b) s_0) s_1, or not written exactly once."""
    m, n, k = shape
    random = np.random.default_rng(seed)
    (a, a_scale), (b, b_scale) = operand(random, m, k), operand(random, n, k)
    arrays = a, b, swizzled(a_scale), swizzled(b_scale)
    problem = Problem.of(m, n, k, dtype)
    out, writes = blackwell_machine.run(
        monkeypatch, problem, tiling, arrays, SCALARS, clusters, seed, forgotten
    )
    exact = (a * np.repeat(a_scale, 16, 1)) @ (b * np.repeat(b_scale, 16, 1)).T
    expected = (exact * SCALARS[0] * SCALARS[1]).astype(dtype)
    beyond = np.abs(out[:, n:].astype(np.float32)).sum() + np.abs(out[m:]).astype(np.float32).sum()
    return bool((out[:m, :n] != expected).any() or (writes != 1).any() or beyond)


@pytest.mark.parametrize("tiling", TILINGS)
@pytest.mark.parametrize(
    ("dtype", "shape", "clusters"),
    [(BF16, (424, 632, 512), 1), (F32, (392, 516, 768), 2)],
)
def test_every_element_is_the_scaled_product_and_written_once(
    monkeypatch, tiling, dtype, shape, clusters
):
    """Several tiles for each cluster, the last ones over the edge; more steps than stages."""
    assert not differs(monkeypatch, tiling, dtype, shape, clusters, seed=tiling.n)


def test_a_cluster_without_a_tile_ends(monkeypatch):
    assert not differs(monkeypatch, PAIR, BF16, (8, 72, 256), clusters=2, seed=0)


WAITS = ["full", "empty", "multiplied", "drained"]


@pytest.mark.parametrize(
    ("tiling", "wait"),
    [*((tiling, wait) for tiling in (PAIR, SINGLE) for wait in WAITS), (PAIR, "staging")],
)
def test_no_wait_is_idle(monkeypatch, tiling, wait):
    """Each wait guards something: without it, some order of events gives a wrong result."""
    assert any(fails(monkeypatch, tiling, seed, wait) for seed in range(20))


def fails(monkeypatch, tiling, seed, forgotten=None) -> bool:
    try:
        return differs(monkeypatch, tiling, BF16, (424, 600, 512), 1, seed, forgotten)
    except (Deadlock, AssertionError):
        return True


class LateWait(Tiling):
    """As if overlapping sums were two buffers."""

    lag = 2  # pyright: ignore


class WrongEnd(Tiling):
    """Reads the columns that the next tile overwrites last."""

    def chunk(self, problem, slot, i):
        return super().chunk(problem, 1 - slot, i)


class EarlyRelease(Tiling):
    """Gives the sums away when their first columns are read."""

    def released_after(self, problem):
        return 0


@pytest.mark.parametrize(
    ("broken", "tiling"), [(LateWait, PAIR), (WrongEnd, PAIR), (EarlyRelease, SINGLE)]
)
def test_sums_that_are_given_away_too_early_are_noticed(monkeypatch, broken, tiling):
    wrong = broken(tiling.ctas, tiling.n, tiling.stages, tiling.cost)
    assert any(fails(monkeypatch, wrong, seed) for seed in range(20))

"""The benchmark of a step, on a model of one small block of each kind."""

from __future__ import annotations

import pytest

from nvfp4_jax.training.bench_step import bench_step
from nvfp4_jax.training.errors import UsageError


def test_figures_of_two_variants():
    said = []
    figures = bench_step(
        "tiny", ("bf16",), batch=1, length=32, rounds=2, scan="on", say=said.append
    )
    assert [f.recipe for f in figures] == ["bf16"], "what is asked for twice is measured once"
    (only,) = figures
    assert only.ratio == 1
    assert only.tokens_per_second == pytest.approx(32 / only.seconds)
    assert only.mfu is None, "a CPU's peak is not known"
    assert only.planned_bytes > 12 * 1_000_000, "parameters and two moments of 1.1 M"
    assert any("compiling bf16" in line for line in said)


def test_refusals():
    with pytest.raises(UsageError, match="--batch 0"):
        bench_step("tiny", (), batch=0, length=32)
    with pytest.raises(UsageError, match="tinny"):
        bench_step("tinny", (), batch=1, length=32)

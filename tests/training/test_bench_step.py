"""The benchmark of a step, on a small model."""

from __future__ import annotations

import json

import pytest

from nvfp4_jax.training.bench_step import bench_step
from nvfp4_jax.training.errors import UsageError

pytestmark = pytest.mark.usefixtures("quick_to_compile")


def test_figures_of_two_variants(tmp_path):
    shape = {"pattern": "----", "hidden": 16, "vocabulary": 256, "ffn": 32}
    model, said = tmp_path / "model.json", []
    model.write_text(json.dumps(shape))
    figures = bench_step(
        str(model), ("bf16",), batch=1, length=32, rounds=2, scan="on", say=said.append
    )
    assert [f.recipe for f in figures] == ["bf16"], "what is asked for twice is measured once"
    (only,) = figures
    assert only.ratio == 1
    assert only.tokens_per_second == pytest.approx(32 / only.seconds)
    assert only.mfu is None, "a CPU's peak is not known"
    parameters = 2 * 256 * 16 + 4 * 2 * 16 * 32
    assert only.planned_bytes > 12 * parameters, "they and two moments, and what a step needs"
    assert any("compiling bf16" in line for line in said)


def test_refusals():
    with pytest.raises(UsageError, match="--batch 0"):
        bench_step("tiny", (), batch=0, length=32)
    with pytest.raises(UsageError, match="tinny"):
        bench_step("tinny", (), batch=1, length=32)

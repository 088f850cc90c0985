"""The experiment on scaling: which programs it compiles, what its ratios mean, what it keeps."""

from __future__ import annotations

import json
import math
from pathlib import Path

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from experiments import scaling, scaling_worker
from experiments.scaling_worker import Task
from nvfp4_jax.training.bench_step import bench_step
from nvfp4_jax.training.errors import UsageError
from nvfp4_jax.training.lone_step import LoneStep

from ..training import micro

pytestmark = pytest.mark.usefixtures("quick_to_compile")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    """A model of one MLP block, which compiles at once."""
    file = tmp_path_factory.mktemp("scaling") / "model.json"
    file.write_text(json.dumps(micro.MODEL | {"pattern": "-"}))
    return str(file)


@pytest.fixture(autouse=True)
def compiled_here():
    """No cache of compiled programs: what a CPU loads from one cannot be serialized again."""
    before = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()
    yield
    jax.config.update("jax_enable_compilation_cache", before)
    compilation_cache.reset_cache()


def test_every_gpu_gets_as_many_rows_and_the_loss_is_of_the_same_batch():
    options = scaling.Options(rows=3, tried=("O1",))
    tasks = scaling.tasks(options, gpus=4)
    rows = {name: task.step.batch for name, task in tasks.items()}
    assert rows == {
        **{f"{r}-{m}=4": 12 for r in ("nvfp4", "bf16") for m in ("data", "fsdp")},
        **{f"{r}-{m}": 3 for r in ("nvfp4", "bf16") for m in ("tensor=4", "one")},
        **{f"{r}-loss": 12 for r in ("nvfp4", "bf16")},
        "O1-fsdp=4": 12,
    }
    assert {n for n, t in tasks.items() if t.step.mesh is None} == {
        f"{r}-{n}" for r in ("nvfp4", "bf16") for n in ("one", "loss")
    }
    assert len({task.file for task in tasks.values()}) == len(tasks)


def test_ratios():
    def told(milliseconds: float, loss: float) -> dict:
        return {"seconds": [milliseconds / 1e3] * 3, "loss": loss, "peak_bytes": 1}

    found = {
        "nvfp4-one": told(110, 2.0),
        "nvfp4-fsdp=2": told(120, 2.1),
        "nvfp4-tensor=2": told(55, 2.0002),
        "nvfp4-loss": {"loss": 2.1},
        "bf16-one": told(100, 2.0),
        "bf16-fsdp=2": {},  # failed
    }
    rows = {row["program"]: row for row in scaling.rows(scaling.Options(rows=4), 2, found)}
    assert list(rows) == ["nvfp4-one", "nvfp4-fsdp=2", "nvfp4-tensor=2", "bf16-one"]
    fsdp, tensor = rows["nvfp4-fsdp=2"], rows["nvfp4-tensor=2"]
    assert (fsdp["rows"], tensor["rows"]) == (8, 4)
    assert fsdp["efficiency"] == pytest.approx(110 / 120), "as many rows a GPU"
    assert tensor["efficiency"] == pytest.approx(110 / 55 / 2), "the same work on two"
    assert rows["nvfp4-one"]["ratio_to_bf16"] == pytest.approx(1.1)
    assert fsdp["ratio_to_bf16"] is None, "its baseline failed"
    assert fsdp["loss_gap"] == 0
    assert tensor["loss_gap"] == pytest.approx(1e-4)
    scaling.show(list(rows.values()), "no cell of it fails to be written")


def test_programs_kept_are_timed_as_they_were_compiled(model, tmp_path):
    def task(kind, mesh: str | None) -> Task:
        step = LoneStep(model=model, recipe="bf16", batch=2, length=16, mesh=mesh)
        return Task(kind, step, None, 2, tmp_path / f"{kind}-{mesh}".replace("=", ""))

    losses = []
    for one in (task("step", "data=2"), task("loss", None)):
        file = one.write()
        assert Task.read(file) == one
        for what in ("compile", "time"):
            scaling_worker.main(what, str(file))
        figures = scaling.figures(one)
        assert figures["planned_bytes"] > 0
        losses.append(figures["loss"])
        assert len(figures.get("seconds", [0, 0])) == 2
    assert math.isclose(*losses, rel_tol=1e-6)


def test_bench_step_on_a_mesh(model):
    (figures,) = bench_step(
        model, (), batch=2, length=16, rounds=1, mesh="fsdp=2", say=lambda _: None
    )
    assert figures.tokens_per_second == pytest.approx(2 * 16 / figures.seconds)
    with pytest.raises(UsageError, match="data x fsdp = 2"):
        bench_step(model, (), batch=3, length=16, mesh="data=2")


def test_devices():
    assert scaling_worker.devices()["count"] == jax.device_count()
    assert Path(scaling.CHECKOUT, "experiments", "scaling.py").exists()

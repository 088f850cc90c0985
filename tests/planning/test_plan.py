"""`nvfp4 plan` from flags to figures, on four H100 that are not there."""

from __future__ import annotations

import json
import math
from pathlib import Path

import jax
import pytest
from rich.console import Console

from nvfp4_jax.planning import step
from nvfp4_jax.planning.forecast import Forecast
from nvfp4_jax.planning.options import Plan
from nvfp4_jax.planning.report import as_json, as_text
from nvfp4_jax.planning.run import foresee
from nvfp4_jax.training.model_choice import choose_model
from nvfp4_jax.training.optimizer import adamw
from nvfp4_jax.training.state import initial_state
from tests.training.micro import MODEL


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.json"
    path.write_text(json.dumps(MODEL))
    return path


@pytest.fixture(scope="module")
def forecast(model: Path) -> Forecast:
    return forecast_of(model)


def forecast_of(model: Path) -> Forecast:
    options = Plan(
        model=str(model), recipe="bf16", gpu="h100", mesh="data=2,fsdp=2", batch=8, length=64,
        remat="block", tokens=1e6,
    )  # fmt: skip
    return foresee(options, Console(quiet=True))


def weights(model: Path) -> dict[str, tuple[int, ...]]:
    config = choose_model(str(model))
    state = jax.eval_shape(lambda: initial_state(config, adamw(), 0))
    return {path: leaf.shape for path, leaf in state.parameters.items()}


def test_memory_holds_the_state_in_its_parts(forecast: Forecast, model: Path):
    sizes = {path: 4 * math.prod(shape) for path, shape in weights(model).items()}
    whole = sum(sizes.values())
    matrices = sum(size for path, size in sizes.items() if path.endswith(("kernel", "weight")))
    memory = forecast.memory
    assert memory.parameters <= whole - matrices / 4  # fsdp = 2 halves most matrices
    assert memory.parameters >= whole / 2
    assert 0 <= memory.moments - 2 * memory.parameters < 64  # and the count of updates
    assert memory.total == sum(memory.by_kind.values())
    assert forecast.fits


def test_what_saves_a_plan_time_changes_nothing_in_it(forecast: Forecast, model, monkeypatch):
    monkeypatch.setattr(step, "QUICKLY", {})
    as_trained = forecast_of(model)
    assert forecast.memory == as_trained.memory
    assert forecast.traffic == as_trained.traffic
    assert forecast.flops == as_trained.flops


def test_gradients_are_added_up_over_both_axes(forecast: Forecast):
    over = {axis for row in forecast.traffic for axis in row.axes}
    assert over == {"data", "fsdp"}
    assert all(row.count > 0 and row.sent > 0 and row.seconds > 0 for row in forecast.traffic)


def test_gradients_are_added_up_in_fp32(forecast: Forecast):
    """All that is summed over rows; in bf16 weights travel, which are gathered."""
    sums = [row for row in forecast.traffic if row.kind in ("all-reduce", "reduce-scatter")]
    assert {(row.kind, *row.axes) for row in sums} >= {
        ("reduce-scatter", "fsdp"),
        ("all-reduce", "data"),
        ("all-reduce", "data", "fsdp"),
    }
    assert {row.dtype for row in sums} == {"f32"}
    assert {row.dtype for row in forecast.traffic if row not in sums} == {"bf16"}


def test_time_is_the_sum_of_what_it_goes_into(forecast: Forecast):
    timing = forecast.timing
    assert sum(timing.spent.values()) == pytest.approx(timing.seconds)
    assert timing.waiting <= timing.communication
    assert forecast.run_seconds == pytest.approx(math.ceil(1e6 / 512) * timing.seconds)
    assert 0 < forecast.mfu < 1


def test_it_is_told_as_text_and_as_json(forecast: Forecast):
    text = as_text(forecast)
    for words in ("memory of a GPU", "over", "bound by", "Nothing ran", "--mesh data=2,fsdp=2"):
        assert words in text
    told = json.loads(as_json(forecast))
    assert told["memory"]["total"] == forecast.memory.total
    assert told["mesh"] == {"data": 2, "fsdp": 2, "sequence": 1, "tensor": 1}
    assert told["step_seconds"] == forecast.timing.seconds

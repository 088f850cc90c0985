"""`nvfp4 bench` at tiny sizes on a CPU: every figure is there, and is a ratio of what it says."""

from __future__ import annotations

import json
import math
import runpy
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from nvfp4_jax.bench import launches, quantizers
from nvfp4_jax.bench.cases import CASES
from nvfp4_jax.bench.linear import bytes_moved, chosen_precision
from nvfp4_jax.bench.memory import bits_per_saved_element
from nvfp4_jax.cli import main
from nvfp4_jax.kernels import xla
from nvfp4_jax.recipe import load_recipe
from nvfp4_jax.training.bench_step import StepFigures, risen

from ..training import micro

pytestmark = pytest.mark.usefixtures("quick_to_compile")

CHECKOUT = Path(__file__).resolve().parents[2]
ROWS, COLUMNS_, SHAPE = 32, 64, (32, 16, 48)
MODEL = micro.MODEL | {"pattern": "-"}  # the fewest layers that a step can have
PACKED = micro.RECIPE.partition("[[schedule]]")[0].replace(
    "[precision.low.fprop]", '[precision.low]\nresiduals = "packed"\n[precision.low.fprop]'
)
PACKED = PACKED.replace("blocks_1", "blocks_0")


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    """The file that one run of all benchmarks wrote."""
    folder = tmp_path_factory.mktemp("bench")
    (folder / "model.json").write_text(json.dumps(MODEL))
    (folder / "packed.toml").write_text(PACKED)
    line = (
        f"bench all --json {folder}/all.json --rounds 3 --calls 1 --sizes {ROWS}x{COLUMNS_} "
        f"--shapes {'x'.join(map(str, SHAPE))} --models {folder}/model.json --batch 2 --length 16 "
        f"--packed {folder}/packed.toml --recipe {folder}/packed.toml"
    )
    main(line.split())
    assert sorted(path.name for path in folder.iterdir()) == [
        "all.json",
        "model.json",
        "packed.toml",
    ]
    return folder / "all.json"


@pytest.fixture(scope="module")
def figures(written) -> dict:
    """What it says."""
    return json.loads(written.read_text())


def test_the_device_is_named_and_a_cpu_is_no_gpu(figures):
    assert figures["device"]["platform"] == "cpu"
    assert figures["device"]["name"]
    assert "nothing of a GPU" in figures["note"]
    assert set(figures) == {"device", "note", "quantizers", "linear", "memory", "step"}


def test_quantizers_are_shares_of_the_copy(figures):
    rows = {row["case"]: row for row in figures["quantizers"]["rows"]}
    assert list(rows) == ["copy", *CASES]
    copy = rows["copy"]
    assert copy["share_of_copy"] == 1
    assert copy["bytes"] == 2 * 2 * ROWS * COLUMNS_
    for row in rows.values():
        low, high = row["quartiles"]
        assert low <= row["milliseconds"] <= high
        pace = row["bytes"] / row["milliseconds"]
        share = pace / (copy["bytes"] / copy["milliseconds"])
        assert row["share_of_copy"] == pytest.approx(share)
        assert row["gigabytes_per_second"] == pytest.approx(pace / 1e6)


def test_bytes_are_those_that_must_move(figures):
    rows = {row["case"]: row for row in figures["quantizers"]["rows"]}
    elements = ROWS * COLUMNS_
    expected = {
        "amax": 2,  # one pass
        "nearest": 2 + 2 + 2,  # a pass for the amax, one to round, and a copy
        "dual": 2 + 2 + 2 * 2,
        "pack": 2 + 2 + 0.5 + 1 / 16,
        "unpack": 0.5 + 1 / 16 + 2,
    }
    for case, per_element in expected.items():
        scalars = rows[case]["bytes"] - per_element * elements
        assert 0 <= scalars <= 8  # FP32 scales of the tensor
    assert rows["dual"]["flop"] == elements * (8 + 8 + 5)


def test_linear_is_a_ratio_to_bf16(figures):
    rows = {(row["part"], row["precision"]): row for row in figures["linear"]["rows"]}
    assert set(rows) == {("product", "bf16"), ("all", "bf16"), ("all", "low")}
    bare, bf16, low = rows.values()
    assert bare["ratio_to_bf16"] is None
    assert bf16["ratio_to_bf16"] == 1
    assert low["ratio_to_bf16"] == pytest.approx(low["milliseconds"] / bf16["milliseconds"])
    assert bare["flop"] == 2 * math.prod(SHAPE)
    for row in (bf16, low):
        assert row["flop"] == 6 * math.prod(SHAPE)
        share = row["teraflop_per_second"] / bare["teraflop_per_second"]
        assert row["share_of_product"] == pytest.approx(share)


def test_memory_is_a_ratio_to_bf16(figures):
    bf16, packed = figures["memory"]["rows"]
    assert (bf16["recipe"], bf16["ratio_to_bf16"]) == ("bf16", 1)
    assert Path(packed["recipe"]).name == "packed.toml"
    for row in (bf16, packed):
        assert row["planned_bytes"] > 3 * 4 * 2000  # parameters and both moments
        assert row["device_peak_bytes"] is None  # a CPU does not count
    assert packed["ratio_to_bf16"] == packed["planned_bytes"] / bf16["planned_bytes"]
    assert (bf16["bits_per_saved_element"], packed["bits_per_saved_element"]) == (16, 4.5)


@pytest.mark.parametrize("name", [n for n in CASES if CASES[n].kind in ("operands", "pack")])
def test_a_kernel_alone_makes_what_the_definition_makes(name):
    case, x = CASES[name], jax.ShapeDtypeStruct((ROWS, COLUMNS_), jnp.bfloat16)
    amax = jax.eval_shape(partial(launches.amax, case), x)
    assert (amax.shape, amax.dtype) == ((len(case.copies),), jnp.int32)
    made = jax.eval_shape(partial(launches.kernel, case), x, amax)
    key = jax.eval_shape(lambda: jax.random.key(0))
    packed = partial(quantizers._packed, xla, case)
    operands = partial(quantizers._operands, xla.to_operands, case)
    wanted = jax.tree.leaves(jax.eval_shape(packed if case.kind == "pack" else operands, x, key))
    arrays = [(one.shape, one.dtype) for one in wanted if one.ndim]  # not the tensor scale
    assert [(one.shape[1:], one.dtype) for one in made] == arrays


def test_a_peak_that_did_not_rise_is_not_told():
    def figures(recipe: str, planned: int, peak: int | None) -> StepFigures:
        return StepFigures(recipe, 1.0, 1.0, 1.0, 1.0, None, 1.0, planned, peak)

    told = risen([figures("bf16", 90, 100), figures("packed", 60, 70)])
    assert told == {"bf16": 100, "packed": 70}
    hidden = risen([figures("bf16", 90, 100), figures("packed", 91, 100)])
    assert hidden == {"bf16": 100}
    assert risen([figures("bf16", 90, None)]) == {}


def test_steps_are_ratios_to_bf16(figures):
    bf16, packed = figures["step"]["rows"]
    assert (bf16["recipe"], bf16["ratio_to_bf16"]) == ("bf16", 1)
    assert packed["ratio_to_bf16"] == pytest.approx(packed["milliseconds"] / bf16["milliseconds"])
    for row in (bf16, packed):
        assert row["tokens_per_second"] == pytest.approx(2 * 16 / row["milliseconds"] * 1e3)
        pace = row["model_flop"] / row["milliseconds"] * 1e3
        assert row["teraflop_per_second"] == pytest.approx(pace / 1e12)
        assert row["model_flops_utilization"] is None  # no peak is listed for a CPU


def test_a_roofline_is_drawn_from_it(written, tmp_path, monkeypatch, capsys):
    picture = tmp_path / "roofline.png"
    monkeypatch.setattr(sys, "argv", ["roofline.py", str(written), "--output", str(picture)])
    runpy.run_path(str(CHECKOUT / "experiments" / "roofline.py"), run_name="__main__")
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert str(picture) in capsys.readouterr().out


@pytest.mark.parametrize(
    ("recipe", "name", "bits"),
    [("nvfp4", "nvfp4", 16), ("nvfp4-packed", "nvfp4", 4.5), ("bf16", "bf16", 16)],
)
def test_bits_per_saved_element(recipe, name, bits):
    assert bits_per_saved_element(load_recipe(recipe).precision[name]) == bits


def test_the_only_quantized_precision_needs_no_name():
    name, precision = chosen_precision("nvfp4", None)
    assert (name, precision) == ("nvfp4", load_recipe("nvfp4").precision["nvfp4"])


def test_bytes_of_a_linear_are_those_of_its_parts():
    parts = {part: bytes_moved(part, SHAPE) for part in ("all", "fprop", "dgrad", "wgrad")}
    tokens, inputs, outputs = SHAPE
    assert parts["fprop"] == 2 * tokens * inputs + 4 * inputs * outputs + 2 * tokens * outputs
    assert parts["all"] == 2 * parts["fprop"]  # x, w, dy read; y, dx, dw written


def test_one_part_of_one_case_in_a_table(capsys):
    main(["bench", "linear", "--shapes", "32x16x16", "--parts", "dgrad", "--rounds", "1"])
    output = capsys.readouterr()
    assert "dgrad" in output.out
    assert "nothing of a GPU" in output.out
    assert "linear 32x16x16" in output.err
    assert "…" not in output.out  # no cell is cut

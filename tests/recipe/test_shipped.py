"""The shipped recipes say what their sources say, from a checkout and from a wheel."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from nvfp4_jax import Gemm, LinearPrecision, Quantizer
from nvfp4_jax.recipe import available, load_recipe

from .trees import PATTERN_12B, nano_12b

ROOT = Path(__file__).resolve().parents[2]
NAMES = (
    *("bf16", "fp8", "mxfp4", "nemotron-3"),
    *("nvfp4", "nvfp4-12b", "nvfp4-late-bf16", "nvfp4-packed"),
)

# arXiv 2509.25149, section 4: 2D weights, RHT on Wgrad, stochastic rounding on gradients.
TILE, ROW = Quantizer("nvfp4", "16x16"), Quantizer("nvfp4")
NVFP4 = LinearPrecision(
    fprop=Gemm(input=ROW, weight=TILE),
    dgrad=Gemm(grad=Quantizer("nvfp4", rounding="stochastic"), weight=TILE),
    wgrad=Gemm(
        input=Quantizer("nvfp4", rht=16), grad=Quantizer("nvfp4", rht=16, rounding="stochastic")
    ),
)


def kept(name: str, recipe_precision: str = "bf16") -> list[int]:
    """The blocks of the 12B of which every linear layer is in `recipe_precision`."""
    layers = load_recipe(name).explain(nano_12b()).layers
    return [
        block
        for block in range(len(PATTERN_12B))
        if all(x.precision_name == recipe_precision for x in layers if x.block == block)
    ]


def test_all_are_there():
    assert available() == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_the_first_comment_names_the_source(name):
    assert load_recipe(name).text.startswith("# Source: ")


@pytest.mark.parametrize("name", NAMES)
def test_the_model_is_evaluated_in_bf16_and_the_head_stays_there(name):
    recipe = load_recipe(name)
    assert not any(p.quantized for p in recipe.for_evaluation().precision.values())
    assert not recipe.resolve("head", num_blocks=62).precision.quantized


@pytest.mark.parametrize("name", ["nvfp4", "nvfp4-12b", "nvfp4-late-bf16", "nemotron-3"])
def test_nvfp4_is_the_papers(name):
    assert load_recipe(name).precision["nvfp4"] == NVFP4


def test_nvfp4_packed_differs_in_what_it_keeps_alone():
    packed = load_recipe("nvfp4-packed")
    assert packed.precision["nvfp4"] == replace(NVFP4, residuals="packed")
    assert kept("nvfp4-packed") == kept("nvfp4")


def test_mxfp4_differs_in_format_alone():
    mxfp4 = load_recipe("mxfp4").precision["mxfp4"]
    row = Quantizer("mxfp4", "1x32", scale="up")
    assert mxfp4.fprop == Gemm(input=row, weight=row)
    assert mxfp4.dgrad == Gemm(grad=Quantizer("mxfp4", rounding="stochastic"), weight=row)
    assert mxfp4.wgrad.input == Quantizer("mxfp4", rht=16)
    assert mxfp4.wgrad.grad == Quantizer("mxfp4", rht=16, rounding="stochastic")


def test_fp8_is_the_papers_baseline():
    fp8 = load_recipe("fp8").precision["fp8"]
    row, tile = Quantizer("fp8_e4m3", "1x128"), Quantizer("fp8_e4m3", "128x128")
    assert fp8.fprop == Gemm(input=row, weight=tile)
    assert fp8.dgrad == Gemm(grad=row, weight=tile)
    assert fp8.wgrad == Gemm(input=row, grad=row)
    assert kept("fp8") == [0, 60, 61]


def test_blocks_of_the_12b_that_stay_in_bf16():
    assert kept("nvfp4-12b") == [0, 1, *range(54, 62)]
    assert kept("nvfp4") == kept("mxfp4") == kept("nvfp4-late-bf16") == list(range(53, 62))
    assert kept("bf16") == list(range(62))


def test_nemotron_3_keeps_attention_and_mambas_output_wider():
    layers = load_recipe("nemotron-3").explain(nano_12b()).layers
    inner = [x for x in layers if x.block is not None and x.block < 53]
    for layer in inner:
        kind = "/".join(layer.path.split("/")[1:])
        wider = {"mamba/out_proj": "mxfp8"} | {f"attention/{n}": "bf16" for n in "qkvo"}
        assert layer.precision_name == wider.get(kind, "nvfp4")
    assert all(x.precision_name == "bf16" for x in layers if x not in inner)


def test_they_load_from_a_wheel(tmp_path):
    """Build the wheel, unpack it away from the checkout, and load every recipe there.

    That is another process with other hash seeds: its digests must be ours.
    """
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = (
        "import json, nvfp4_jax; from nvfp4_jax.recipe import *;"
        "digests = {name: load_recipe(name).digest for name in available()};"
        "print(json.dumps([nvfp4_jax.__file__, digests]))"
    )
    # -P keeps the checkout off the path; what is inserted comes before an editable install.
    start = f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r});"
    done = subprocess.run(
        [sys.executable, "-P", "-c", start + code],
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
    )
    file, digests = json.loads(done.stdout)
    assert file.startswith(str(tmp_path))
    assert digests == {name: load_recipe(name).digest for name in NAMES}

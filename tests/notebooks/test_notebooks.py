"""The notebook runs as it stands, and what it says about its numbers is so.

It is executed in a kernel of its own, as a reader would, with one more cell that prints the
results the text draws conclusions from.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nbclient
import nbformat
import pytest

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "anatomy.ipynb"
LARGEST_FILE = 400_000  # bytes, pictures included: a repository is no place for more

REPORT = """
import json
print(json.dumps({
    "equal_by_hand": equal_by_hand,
    "errors": errors,
    "rotation": {f"{f} {rht} {name}": v for (f, rht, name), v in rotation.items()},
    "rounding": rounding,
    "gemms": gemms,
    "blockwise_difference": blockwise_difference,
    "differ": differ,
}))
"""


@pytest.fixture(scope="module")
def executed() -> nbformat.NotebookNode:
    """The notebook after a run from top to bottom; a cell that raises fails here."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    notebook.cells.append(nbformat.v4.new_code_cell(REPORT))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_PLATFORMS", "cpu")
        nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    return notebook


@pytest.fixture(scope="module")
def results(executed: nbformat.NotebookNode) -> dict[str, Any]:
    return json.loads(executed.cells[-1].outputs[0].text)


def test_every_cell_is_silent_or_shows_something(executed):
    outputs = [output for cell in executed.cells if "outputs" in cell for output in cell.outputs]
    assert {output.output_type for output in outputs} == {"stream", "display_data"}
    assert {output.name for output in outputs if output.output_type == "stream"} == {"stdout"}
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 7


def test_the_file_is_small_and_its_pictures_are_those_of_a_whole_run():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))
    assert NOTEBOOK.stat().st_size < LARGEST_FILE


def test_a_block_by_hand_is_the_librarys(results):
    assert results["equal_by_hand"] is True


def test_formats_lose_what_their_mantissas_say(results):
    """Rounding at random to m mantissa bits errs by about 2^-m / sqrt(12 * 2) of the norm.

    The gap is at most 2^-m of a number, uniform errors have rms gap / sqrt(12), and numbers
    spread over a binade are on average somewhat more than the gap's end: within 40% of that.
    """
    normal = {name: error["normal"][0] for name, error in results["errors"].items()}
    for name, mantissa_bits in {"bf16": 7, "fp8_e4m3": 3, "mxfp8_e5m2": 2, "nvfp4": 1}.items():
        assert normal[name] == pytest.approx(2**-mantissa_bits / 24**0.5, rel=0.4)
    assert normal["nvfp4"] < normal["nvfp4 16x16"] < normal["mxfp4"]


def test_the_rotation_spares_zeros_and_not_error_in_nvfp4(results):
    rotation = results["rotation"]
    for name in ("heavy tails", "outliers"):
        (error, zeros), (rotated_error, rotated_zeros) = (
            rotation[f"nvfp4 {rht} {name}"] for rht in (0, 16)
        )
        assert rotated_zeros < zeros / 2
        assert rotated_error > error
        assert rotation[f"mxfp4 16 {name}"][0] < rotation[f"mxfp4 0 {name}"][0]


def test_stochastic_rounding_is_noisier_once_and_right_on_average(results):
    """Uniform fractions f err by rms sqrt(1/12) to nearest, and sqrt(mean f(1-f)) = sqrt(1/6).

    Means over 3,840 elements and 256 draws have a standard error of 0.41 / sqrt(983,040) = 0.0004
    from the draws; five of them, beside the 1/512 that eight bits fall short by.
    """
    nearest, eight, sixteen = results["rounding"].values()
    assert nearest["rms"] == pytest.approx(12**-0.5, rel=0.02)
    assert nearest["averaged"] == pytest.approx([nearest["rms"]] * 9)
    for way, bias in ((eight, -1 / 512), (sixteen, 0)):
        assert way["rms"] == pytest.approx(6**-0.5, rel=0.02)
        assert way["averaged"][-1] == pytest.approx(6**-0.5 / 16, rel=0.05)
        assert way["bias"] == pytest.approx(bias, abs=5 * 0.0004)


def test_errors_of_two_operands_add_like_sides_of_a_right_angle(results):
    gemms = results["gemms"]
    assert gemms["bf16"][0] < gemms["fp8"][0] < gemms["nvfp4"][0] < gemms["mxfp4"][0]
    assert gemms["nvfp4"][0] == pytest.approx(2**0.5 * 0.1, rel=0.1)


def test_averaging_steps_helps_stochastic_rounding_only(results):
    """Of two operands that err alike, one averages out: dw's error falls towards 1/sqrt(2)."""
    *_, once, averaged = results["gemms"]["nvfp4"]
    *_, nearest_once, nearest_averaged = results["gemms"]["nvfp4, all nearest"]
    assert averaged < 0.75 * once
    assert averaged < nearest_averaged
    assert nearest_averaged == pytest.approx(nearest_once, rel=1e-3)


def test_blocks_along_the_contraction_axis_and_square_weights(results):
    assert results["blockwise_difference"] < 1e-6
    assert results["differ"]["16x16"] == 0
    assert results["differ"]["1x16"] > 0.5

"""What changes during a run, exactly when, and what it leaves alone."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvfp4_jax import Gemm, LinearPrecision
from nvfp4_jax.precision import GEMMS
from nvfp4_jax.recipe import Recipe, RecipeError, load_recipe
from nvfp4_jax.recipe.schedule import first_step

BASE = load_recipe("nemotron-3").text.replace('[evaluation]\nprecision = "bf16"\n', "")


def recipe(*entries: str, evaluation: str = "") -> Recipe:
    """nemotron-3 (nvfp4, mxfp8 and bf16 layers) with a schedule and an evaluation precision."""
    tail = "".join(f"[[schedule]]\n{entry}\n" for entry in entries)
    tail += f'[evaluation]\nprecision = "{evaluation}"\n' if evaluation else ""
    return Recipe.from_text(BASE + tail, "test")


WRITTEN = recipe().precision


@given(st.integers(0, 100), st.integers(1, 5000))
def test_a_fraction_starts_at_the_first_step_not_before_it(percent, total):
    start = first_step(percent / 100, total)
    assert Fraction(start, total) >= Fraction(percent, 100) > Fraction(start - 1, total)


def test_a_fraction_is_the_decimal_it_was_written_as():
    assert 0.07 * 100 > 7  # as floats multiply
    assert first_step(0.07, 100) == 7
    assert first_step(7, 100) == 7


@pytest.mark.parametrize(("total", "switch"), [(1000, 820), (55, 46), (300, 246)])
def test_the_forward_pass_switches_at_82_percent(total, switch):
    late = load_recipe("nvfp4-late-bf16")
    assert late.switch_points(total) == (switch,)
    before, after = late.at(switch - 1, total), late.at(switch, total)
    written = late.precision["nvfp4"]
    assert before.precision["nvfp4"] == late.at(0, total).precision["nvfp4"] == written
    assert after.precision["nvfp4"] == LinearPrecision(
        fprop=Gemm(), dgrad=written.dgrad, wgrad=written.wgrad
    )
    assert after.at(0, total) == after  # what is in force has no schedule left
    assert late.at(total, total) == after


def test_labels_say_what_is_in_force():
    late = load_recipe("nvfp4-late-bf16").at(9, 10)
    assert late.resolve("blocks_0/mlp/up", 10).precision_name == "nvfp4 (fprop: bf16)"
    assert late.resolve("head").precision_name == "bf16"
    evaluated = late.for_evaluation()
    assert evaluated.resolve("blocks_0/mlp/up", 10).precision_name == "bf16"


def test_all_gemms_are_the_default_and_high_precision_layers_are_left_alone():
    changed = recipe('from = 5\nprecision = "mxfp8"').at(5, 10)
    assert changed.precision == {
        "bf16": LinearPrecision(),
        "nvfp4": WRITTEN["mxfp8"],
        "mxfp8": WRITTEN["mxfp8"],
    }


def test_later_entries_override_earlier_ones_and_until_ends():
    some = recipe(
        'from = 2\nprecision = "mxfp8"',
        'from = 4\nuntil = 6\ngemms = ["fprop"]\nprecision = "bf16"',
        'from = 0.8\ngemms = ["wgrad"]\nprecision = "nvfp4"',
    )
    sources = [
        next(named.sources for named in some.at(step, 10).precisions if named.name == "nvfp4")
        for step in range(10)
    ]
    m, n, b = "mxfp8", "nvfp4", "bf16"
    assert (
        sources
        == [(n,) * 3] * 2 + [(m,) * 3] * 2 + [(b, m, m)] * 2 + [(m,) * 3] * 2 + [(m, m, n)] * 2
    )
    assert some.switch_points(10) == (2, 4, 6, 8)
    assert some.at(4, 10).precision["nvfp4"].fprop == Gemm()


def test_switch_points_are_the_steps_at_which_something_changes():
    some = recipe(
        'from = 0\ngemms = ["fprop"]\nprecision = "bf16"',  # from the start: no switch
        'from = 0.4\ngemms = ["fprop"]\nprecision = "bf16"',  # changes nothing
        'from = 0.5\nprecision = "bf16"',
        'from = 70\nprecision = "bf16"',  # after the end
    )
    assert some.switch_points(10) == (5,)
    assert recipe().switch_points(10) == ()


@given(st.lists(st.integers(0, 20), max_size=4).map(sorted), st.integers(1, 20))
def test_switch_points_agree_with_at_step_by_step(starts, total):
    names = ["bf16", "mxfp8", "nvfp4", "bf16"]
    entries = [
        f'from = {s}\ngemms = ["{g}"]\nprecision = "{n}"'
        for s, g, n in zip(starts, [*GEMMS, "fprop"], names, strict=False)
    ]
    some = recipe(*entries)
    steps = [some.at(step, total).precision for step in range(total)]
    assert some.switch_points(total) == tuple(
        step for step in range(1, total) if steps[step] != steps[step - 1]
    )


def test_evaluation_takes_every_quantized_layer_whatever_the_step():
    some = recipe('from = 5\nprecision = "bf16"', evaluation="mxfp8")
    for now in (some, some.at(0, 10), some.at(7, 10)):
        evaluated = now.for_evaluation()
        assert evaluated.precision["nvfp4"] == WRITTEN["mxfp8"]
        assert evaluated.precision["bf16"] == LinearPrecision()
        assert evaluated.for_evaluation() == evaluated == evaluated.at(3, 10)


def test_without_an_evaluation_table_it_evaluates_as_it_trains():
    assert recipe().for_evaluation() == recipe()
    scheduled = recipe('from = 5\nprecision = "bf16"')
    assert scheduled.at(7, 10).for_evaluation() == scheduled.at(7, 10)


def test_steps_and_fractions_out_of_order_raise_once_the_length_is_known():
    some = recipe('from = 500\nprecision = "bf16"', 'from = 0.4\nprecision = "mxfp8"')
    assert some.switch_points(2000) == (500, 800)
    with pytest.raises(RecipeError, match=r"schedule entry 2 \(line \d+\): starts at step 400"):
        some.at(0, 1000)
    with pytest.raises(RecipeError, match=r"until = 0\.1 is before from = 500"):
        recipe('from = 500\nuntil = 0.1\nprecision = "bf16"').at(0, 1000)


@pytest.mark.parametrize(("step", "total"), [(-1, 10), (0, 0)])
def test_impossible_steps_raise(step, total):
    with pytest.raises(ValueError, match="give step >= 0"):
        recipe().at(step, total)


@pytest.mark.parametrize("step", [1.0, True, "1"])
def test_only_integers_are_steps(step):
    with pytest.raises(TypeError, match="outside jit"):
        recipe().at(step, 10)

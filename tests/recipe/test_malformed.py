"""A malformed recipe gives one message: the file, the line, the place, the remedy."""

from __future__ import annotations

import pickle

import pytest

from nvfp4_jax.recipe import Recipe, RecipeError, available, load_recipe

from .malformed import CASES, HEAD, REST, Malformed


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_message_names_file_line_place_and_remedy(case: Malformed, tmp_path):
    path = case.write(tmp_path)
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    error, message = caught.value, str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    assert (error.file, error.place, error.line) == (str(path), case.place, case.line)
    assert case.place in message
    assert case.line is None or f"line {case.line}" in message
    assert case.remedy in error.problem


def test_cases_are_many_and_differ():
    assert len(CASES) >= 30
    assert len({case.name for case in CASES}) == len(CASES)


def test_the_text_the_cases_start_from_is_sound():
    assert Recipe.from_text(HEAD + REST, "sound").precision["low"].quantized


def test_a_rule_is_named_by_number_and_line(tmp_path):
    (case,) = (case for case in CASES if case.name == "empty-rule")
    with pytest.raises(RecipeError, match=r"rule 2 \(line 7\): this rule selects nothing"):
        load_recipe(case.write(tmp_path))


@pytest.mark.parametrize(
    ("name", "remedy"),
    [("nvpf4", "did you mean 'nvfp4'?"), ("nemotron3", "did you mean 'nemotron-3'?"), ("", "path")],
)
def test_an_unknown_name_gets_the_nearest_one(name, remedy):
    with pytest.raises(RecipeError) as caught:
        load_recipe(name)
    assert remedy in caught.value.problem
    assert all(repr(known) in caught.value.problem for known in available())


def test_a_recipe_from_elsewhere_is_called_by_its_name():
    with pytest.raises(RecipeError, match=r"^checkpoint 300: the recipe is empty"):
        Recipe.from_text("", "checkpoint 300")


def test_load_recipe_refuses_what_is_neither_name_nor_path():
    with pytest.raises(TypeError, match="a name or a path"):
        load_recipe(3)  # type: ignore[arg-type]


def test_the_error_survives_pickling():
    error = RecipeError("a.toml", "wrong; mend it", "rule 1", 3)
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.place, copy.line) == (
        "a.toml: rule 1 (line 3): wrong; mend it",
        "rule 1",
        3,
    )

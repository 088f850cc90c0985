"""Whatever a file holds, it is a recipe or a `RecipeError`: never another exception."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nvfp4_jax.recipe import Recipe, RecipeError, available, load_recipe

from .malformed import CASES, HEAD, REST
from .trees import mlps

TEXTS = [load_recipe(name).text for name in available()]
TEXTS += [case.content for case in CASES if isinstance(case.content, str)]
VALUES = ["1", "-1", "0.5", "1e400", "nan", "true", '"x"', "[]", "{}", "[{}]", "{ a = 1 }", "00:00"]
KEYS = ["match", "regex", "kind", "blocks", "precision", "optional", "from", "until", "gemms"]
KEYS += [
    "first",
    "last",
    "last_fraction",
    "index",
    "format",
    "rht",
    "input",
    "fprop",
    '"a.b"',
    "x.y",
]
TABLES = ["[precision.low]", "[precision.low.dgrad]", "[precision.low.dgrad.grad]", "[[rule]]"]
TABLES += ["[rule.blocks]", "[[schedule]]", "[evaluation]", "[[precision]]", "[precision.low.x]"]
STATEMENTS = st.one_of(
    st.sampled_from(TABLES),
    st.builds("{} = {}".format, st.sampled_from(KEYS), st.sampled_from(VALUES)),
)


def refusal(text: str) -> RecipeError | None:
    """Decode a text and use it; the error if it is refused. Other exceptions fail the test."""
    try:
        recipe = Recipe.from_text(text, "fuzz")
        recipe.at(1, 10).for_evaluation().check(mlps(4), num_blocks=4)
    except RecipeError as error:
        return error
    return None


def check(text: str) -> None:
    """A refusal names the file, says what is wrong, and gives a line that exists."""
    error = refusal(text)
    if error is not None:
        assert str(error).startswith("fuzz: ")
        assert error.problem
        assert error.line is None or 1 <= error.line <= text.count("\n") + 1


@settings(max_examples=300)
@given(st.sampled_from(TEXTS), st.data())
def test_one_edit(text, data):
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, min(start + 8, len(text))))
    words = st.sampled_from(
        ["", "[", "]", "{", '"', "'", '"""', "=", "\n", "#", ".", "\\", "é", "*"]
    )
    check(text[:start] + data.draw(words) + text[end:])


@settings(max_examples=300)
@given(st.lists(STATEMENTS, min_size=1, max_size=4))
def test_words_of_a_recipe_in_the_wrong_place(statements):
    check("\n".join([HEAD, REST, *statements]))


@settings(max_examples=50)
@given(st.binary(max_size=40))
def test_any_bytes(tmp_path_factory, data):
    path = Path(tmp_path_factory.mktemp("bytes")) / "any.toml"
    path.write_bytes(data)
    with pytest.raises(RecipeError, match=r"any\.toml: "):
        load_recipe(path)  # no recipe is as short as 40 bytes


@settings(max_examples=50)
@given(st.text(min_size=1, max_size=12))
def test_any_name_of_a_precision(name):
    text = f'{HEAD.replace("low", json.dumps(name))}[[rule]]\nmatch = "**"\n'
    check(f"{text}precision = {json.dumps(name)}\n")

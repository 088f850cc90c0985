"""Globs: `*` inside one name, `**` across slashes, held against a slow definition."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nvfp4_jax.recipe.globs import compile_glob, problem_of


def matches(glob: str, path: str, start: bool = True) -> bool:
    """The definition, one character at a time; `start`: at the beginning of a name."""
    if not glob:
        return not path
    if start and glob.startswith("**/") and matches(glob[3:], path):
        return True  # no name at all
    if start and glob.startswith("**/"):
        return any(matches(glob[3:], path[i + 1 :]) for i in range(len(path)) if path[i] == "/")
    if glob.startswith("**"):
        return any(matches(glob[2:], path[i:], start=False) for i in range(len(path) + 1))
    if glob[0] == "*":
        name = path.split("/")[0]
        return any(matches(glob[1:], path[i:], start=False) for i in range(len(name) + 1))
    return path[:1] == glob[0] and matches(glob[1:], path[1:], start=glob[0] == "/")


NAMES = st.text("ab_", min_size=1, max_size=3)
PATHS = st.lists(NAMES, min_size=1, max_size=4).map("/".join)
PIECES = st.lists(st.sampled_from(["a", "b", "_", "*", "**"]), min_size=1, max_size=3)
GLOBS = (
    st.lists(PIECES.map("".join), min_size=1, max_size=4)
    .map("/".join)
    .filter(lambda glob: problem_of(glob) is None)
)


@settings(max_examples=500, deadline=None)
@given(GLOBS, PATHS)
def test_as_the_definition_says(glob, path):
    assert (compile_glob(glob).fullmatch(path) is not None) == matches(glob, path)


@pytest.mark.parametrize(
    ("glob", "yes", "no"),
    [
        ("blocks_*/**", ["blocks_3/mlp/up", "blocks_/x"], ["blocks_3", "head", "a/blocks_3/up"]),
        ("**", ["head", "blocks_3/mlp/up", ""], []),
        ("*", ["head"], ["mlp/up"]),
        ("**/up", ["up", "mlp/up", "blocks_3/mlp/up"], ["blocks_3/mlp/sup", "up/x"]),
        ("a/**/b", ["a/b", "a/x/b", "a/x/y/b"], ["a/xb", "ab", "a/x/b/c"]),
        ("*/mlp/up", ["blocks_3/mlp/up"], ["a/blocks_3/mlp/up", "mlp/up"]),
        ("blocks_1", ["blocks_1"], ["blocks_11", "blocks_1/x"]),
        ("h.d", ["h.d"], ["had"]),
    ],
)
def test_examples(glob, yes, no):
    pattern = compile_glob(glob)
    assert all(pattern.fullmatch(path) for path in yes)
    assert not any(pattern.fullmatch(path) for path in no)


@pytest.mark.parametrize("glob", ["a?", "a[0]", "{a,b}", "!a", "a//b", "/a", "a/", "***", "x/3"])
def test_what_is_no_glob_is_told_why(glob):
    assert problem_of(glob)

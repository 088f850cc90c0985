"""The picture of the house, and the tests that keep the house like its picture.

Imports go down only: a module imports from the rows below it, and from those to its left in its
own row. Levels 0 to 4 know nothing of Flax. The models know nothing of the library: precision
enters them as an injected `dot_general` and in no other way. To build differently, change the
picture here together with the code.
"""

from __future__ import annotations

import ast
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path
from statistics import median, quantiles

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "nvfp4_jax"

# From the roof to the ground; a name with a slash is a package.
PICTURE = {
    7: "cli __main__",
    6: "training/ data/ planning/ bench/",  #     consumes models and recipes
    5: "promotion linen nnx",  #           the two doors into Flax
    4: "recipe/ compiled/",  #             which layer, when, how; and what then ran
    3: "precision quantize operands product ordered_product residuals together honoured "
    "dot_general einsum chained",
    2: "kernels/",  #                      one file an op and implementation
    1: "quantizer block_scaled packing gpus compile_for",  # codes; and for which GPU
    0: "formats division rounding philox materialize hadamard axes contraction keys scopes",
}
BESIDE = "models/"  # imports nothing of the house; levels 6 and 7 import it
KNOW_FLAX = (5, 6, 7)
KNOW_MODELS = (6, 7)


def rows() -> dict[str, tuple[int, int]]:
    """(level, place in its row) of every module and package of the picture."""
    return {
        name.rstrip("/"): (level, place)
        for level, row in PICTURE.items()
        for place, name in enumerate(row.split())
    }


def files() -> list[Path]:
    """Every module of the package but its own `__init__`, which shows what is public."""
    return [path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py"]


def name_of(path: Path) -> str:
    """`recipe.rules` for nvfp4_jax/recipe/rules.py; `recipe` for the package itself."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def room(name: str) -> str:
    """What the picture shows of a module: itself, or the package it lies in."""
    return name.split(".")[0]


@cache
def parsed(path: Path) -> ast.Module:
    """The file's syntax tree."""
    return ast.parse(path.read_text())


def imported(path: Path, tree: ast.AST | None = None) -> set[str]:
    """Full names of all that a file imports, at whatever depth; `a.b` for `from a import b`."""
    names: set[str] = set()
    for node in ast.walk(tree or parsed(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the level; write the full name"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def ours(names: set[str]) -> set[str]:
    """The modules of this package among imported names; "" for a public name of the package."""
    known = {name_of(path) for path in files()}
    inner = {name.removeprefix("nvfp4_jax.") for name in names if name.startswith("nvfp4_jax.")}
    return {name if name in known else name.rpartition(".")[0] for name in inner}


@pytest.mark.parametrize("path", files(), ids=name_of)
def test_imports_go_down_only(path: Path):
    here = room(name_of(path))
    targets = {room(name) for name in ours(imported(path))} - {here}
    assert "" not in targets, f"{path}: import the module itself, not the package's public names"
    assert targets <= allowed(here), f"{here} may not import {targets - allowed(here)}"


def allowed(here: str) -> set[str]:
    """What may be imported from a room: the rows below it, and its own row to the left."""
    if here == room_beside():
        return set()
    assert here in rows(), f"{here} is not in the picture: give it a place in {__file__}"
    level, place = rows()[here]
    below = {name for name, spot in rows().items() if spot[0] < level}
    left = {name for name, spot in rows().items() if spot[0] == level and spot[1] < place}
    return below | left | ({room_beside()} if level in KNOW_MODELS else set())


def room_beside() -> str:
    """The models, as a room."""
    return BESIDE.rstrip("/")


@pytest.mark.parametrize("path", files(), ids=name_of)
def test_the_lower_levels_know_nothing_of_flax(path: Path):
    here = room(name_of(path))
    if here != room_beside() and rows()[here][0] not in KNOW_FLAX:
        assert not {name for name in imported(path) if name.split(".")[0] == "flax"}


def test_no_module_imports_itself_in_a_circle():
    graph = {}
    for path in files():
        graph[name_of(path)] = ours(imported(path, run_at_import(parsed(path))))
    for package in {room(name) for name in graph if "." in name}:
        graph.pop(package)  # a package's __init__ shows what is public; its modules do not use it
    list(TopologicalSorter(graph).static_order())  # raises CycleError, naming the circle


def run_at_import(tree: ast.Module) -> ast.Module:
    """A module without what only type checkers read."""

    def is_run(node: ast.stmt) -> bool:
        return not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))

    return ast.Module([node for node in tree.body if is_run(node)], [])


def test_the_picture_shows_what_is_there():
    there = {room(name_of(path)) for path in files()}
    assert there == {*rows(), room_beside()}


def test_files_are_short():
    lines = {path: len(path.read_text().splitlines()) for path in files()}
    long = {name_of(path): count for path, count in lines.items() if count > 400}
    assert not long
    modules = [count for path, count in lines.items() if path.name != "__init__.py"]
    assert 60 <= median(modules) <= 180


def test_functions_are_short():
    """Statements only: a docstring that teaches is not length."""
    functions = [
        node
        for path in files()
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    lengths = [statement_lines(function) for function in functions]
    assert median(lengths) <= 12
    assert quantiles(lengths, n=10)[-1] < 45


def statement_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """The lines of a function's body after its docstring."""
    body = function.body[ast.get_docstring(function) is not None :]
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0

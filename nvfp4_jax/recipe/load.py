"""Finding recipe files: the shipped ones by name, any other by path.

The shipped recipes lie in `recipes/` of a checkout, and inside the package once it is installed
from a wheel; `importlib.resources` reads them there, unpacked or not.
"""

from __future__ import annotations

import os
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

from nvfp4_jax.quantizer import nearest_spelling
from nvfp4_jax.recipe.errors import RecipeError
from nvfp4_jax.recipe.recipe import Recipe

SUFFIX = ".toml"


def load_recipe(name_or_path: str | os.PathLike[str]) -> Recipe:
    """A shipped recipe by name (`"nvfp4"`, see `available`), or one of your own by path.

    A string with a slash or that ends in `.toml` is a path, and so is any `pathlib.Path`.

    Raises:
      RecipeError: no such recipe, a file that cannot be read as UTF-8 TOML, or anything in it
        that a recipe cannot say; the message names file, line, place and remedy.
    """
    if not isinstance(name_or_path, str | os.PathLike):
        raise TypeError(f"load_recipe takes a name or a path, not {name_or_path!r}")
    if isinstance(name_or_path, str) and not _looks_like_a_path(name_or_path):
        return _shipped(name_or_path)
    path = Path(name_or_path)
    return Recipe.from_text(_decoded(_read(path), str(path)), path.stem, str(path))


def available() -> tuple[str, ...]:
    """The names of the shipped recipes."""
    names = (entry.name for entry in _shipped_folder().iterdir())
    return tuple(sorted(n.removesuffix(SUFFIX) for n in names if n.endswith(SUFFIX)))


def _looks_like_a_path(word: str) -> bool:
    return word.endswith(SUFFIX) or "/" in word or os.sep in word


def _shipped(name: str) -> Recipe:
    if name not in available():
        raise RecipeError(
            name or "''",
            f"no shipped recipe has this name: {nearest_spelling(name, available())}; "
            "a file of your own is named by its path, ending in .toml",
        )
    source = f"recipes/{name}{SUFFIX}"
    data = _shipped_folder().joinpath(name + SUFFIX).read_bytes()
    return Recipe.from_text(_decoded(data, source), name, source)


def _shipped_folder() -> Traversable:
    package = resources.files("nvfp4_jax")
    installed = package.joinpath("recipes")
    if installed.is_dir():
        return installed
    # An editable install runs from the checkout, where recipes/ lies beside the package.
    return Path(str(package)).parent / "recipes"


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        problem = f"there is no such file; shipped recipes are {', '.join(available())}"
    except IsADirectoryError:
        problem = "this is a directory; name the .toml file in it"
    except OSError as error:
        problem = f"it cannot be read ({error.strerror}); check the path and its permissions"
    raise RecipeError(str(path), problem)


def _decoded(data: bytes, source: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        problem = f"byte {data[error.start]:#04x} is not UTF-8; save the file as UTF-8"
        raise RecipeError(source, problem, "", line) from None

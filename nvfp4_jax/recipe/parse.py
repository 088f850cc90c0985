"""From the text of a recipe file to its parts.

The one place where the parts meet: TOML syntax, then precisions, then what refers to them by name
(rules, schedule, evaluation).
"""

from __future__ import annotations

import re
import tomllib
from typing import NamedTuple

from msgspec import UNSET

from nvfp4_jax.precision import LinearPrecision
from nvfp4_jax.recipe.errors import Place, RecipeError
from nvfp4_jax.recipe.lines import Lines, statements
from nvfp4_jax.recipe.precisions import decode_precisions
from nvfp4_jax.recipe.rules import Rule, check_precision_name, decode_rules
from nvfp4_jax.recipe.schedule import Entry, decode_schedule
from nvfp4_jax.recipe.schema import EvaluationTable, RecipeTable, decode

EMPTY = (
    'the recipe is empty; give it at least one [[rule]], such as match = "**" with '
    'precision = "bf16"'
)
# tomllib's words for a key or table that appears again.
_TWICE = re.compile(r"Cannot (overwrite|declare|redefine|mutate)|Duplicate|twice|already")


class Parts(NamedTuple):
    """What a recipe file says; `evaluation` is None where it says nothing of it."""

    precisions: dict[str, LinearPrecision]
    rules: tuple[Rule, ...]
    schedule: tuple[Entry, ...]
    evaluation: str | None


def parse(text: str, source: str) -> Parts:
    """The parts of the recipe that `text` describes; `source` is the file that errors name.

    Raises:
      RecipeError: anything a recipe cannot say.
    """
    tables = _toml(text, source)
    place = Place(source, Lines(text))
    top = decode(RecipeTable, tables, place)
    precisions = decode_precisions(top.precision, place.at("precision"))
    names = tuple(precisions)
    rules = decode_rules(top.rule, names, place.at("rule"))
    schedule = decode_schedule(top.schedule, names, place.at("schedule"))
    evaluation = None
    if top.evaluation is not UNSET:
        evaluation = decode(EvaluationTable, top.evaluation, place.at("evaluation")).precision
        check_precision_name(evaluation, names, place.at("evaluation"))
    return Parts(precisions, rules, schedule, evaluation)


def _toml(text: str, source: str) -> dict:
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise _not_toml(str(error), text, source) from None
    if not tables:
        raise RecipeError(source, EMPTY)
    return tables


def _not_toml(message: str, text: str, source: str) -> RecipeError:
    found = re.search(r"\s*\(at (?:line (\d+), column \d+|end of document)\)$", message)
    line = int(found[1]) if found and found[1] else None
    if found and line is None:  # the end of the document is in its last statement
        line = max((start for start, _ in statements(text)), default=None)
    reason = message[: found.start()] if found else message
    shown = text.splitlines()[line - 1].strip() if line and line <= len(text.splitlines()) else ""
    quoted = f": {shown}" if shown else ""
    if _TWICE.search(reason):
        return RecipeError(source, f"a key or table is given twice{quoted}; keep one", "", line)
    problem = f"this is not TOML ({reason}){quoted}; mend the line"
    return RecipeError(source, problem, "", line)

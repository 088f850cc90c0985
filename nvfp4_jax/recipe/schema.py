"""The tables a recipe file may hold, key by key, and their strict decoding.

What is not written here cannot be said in a recipe. msgspec refuses unknown keys and wrong types
(`rht = true` is no integer, `rht = "16"` neither); this module turns its refusal into a
`RecipeError` with the place and the nearest right spelling. What combinations of right words mean
is judged later, by the module whose subject it is.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec
from msgspec import UNSET, Struct, UnsetType

from nvfp4_jax.quantizer import nearest_spelling
from nvfp4_jax.recipe.errors import Place

Table = dict[str, Any]


class RecipeTable(Struct, forbid_unknown_fields=True, frozen=True):
    """The whole file."""

    precision: dict[str, Table] = {}
    rule: list[Table] = []
    schedule: list[Table] = []
    evaluation: Table | UnsetType = UNSET


class PrecisionTable(Struct, forbid_unknown_fields=True, frozen=True):
    """`[precision.NAME]`: a table of operands for each GEMM; one left out is bf16."""

    fprop: str | Table | UnsetType = UNSET
    dgrad: str | Table | UnsetType = UNSET
    wgrad: str | Table | UnsetType = UNSET
    residuals: str | UnsetType = UNSET


class GemmTable(Struct, forbid_unknown_fields=True, frozen=True):
    """`[precision.NAME.GEMM]`: an operand is a table, or the word "bf16"; one left out is bf16."""

    input: str | Table | UnsetType = UNSET
    weight: str | Table | UnsetType = UNSET
    grad: str | Table | UnsetType = UNSET


class OperandTable(Struct, forbid_unknown_fields=True, frozen=True):
    """The fields of a `Quantizer`; what is left out takes the format's own default."""

    format: str
    granularity: str | UnsetType = UNSET
    rounding: str | UnsetType = UNSET
    bits: int | UnsetType = UNSET
    rht: int | UnsetType = UNSET
    scale: str | UnsetType = UNSET
    sign: str | UnsetType = UNSET


class RuleTable(Struct, forbid_unknown_fields=True, frozen=True):
    """`[[rule]]`: selectors, all of which must hold, and the precision of what they select."""

    precision: str
    match: str | UnsetType = UNSET
    regex: str | UnsetType = UNSET
    kind: str | UnsetType = UNSET
    blocks: Table | UnsetType = UNSET
    optional: bool = False


class BlocksTable(Struct, forbid_unknown_fields=True, frozen=True):
    """`blocks = { ... }` of a rule: any of its keys may select a block."""

    first: int | UnsetType = UNSET
    last: int | UnsetType = UNSET
    last_fraction: float | UnsetType = UNSET
    index: list[int] | UnsetType = UNSET


class ScheduleTable(Struct, forbid_unknown_fields=True, frozen=True, rename={"start": "from"}):
    """`[[schedule]]`: from when (and until when) which GEMMs take another precision's."""

    start: int | float
    precision: str
    gemms: list[str] | UnsetType = UNSET
    until: int | float | UnsetType = UNSET


class EvaluationTable(Struct, forbid_unknown_fields=True, frozen=True):
    """`[evaluation]`: the precision in which a model is evaluated."""

    precision: str


def decode[AnyTable: Struct](kind: type[AnyTable], table: Table, place: Place) -> AnyTable:
    """`table` as a `kind`.

    Raises:
      RecipeError: an unknown or missing key, or a value of the wrong type.
    """
    try:
        return msgspec.convert(table, kind)
    except msgspec.ValidationError as error:
        raise _explained(kind, table, place, str(error)) from None


def given(table: Struct) -> dict[str, Any]:
    """The keys of `table` that the file gives."""
    return {k: v for k, v in msgspec.structs.asdict(table).items() if v is not UNSET}


# msgspec speaks of JSON; a person at a TOML file of these.
_WORDS: dict[str, str] = {
    "object": "a table",
    "array": "an array",
    "str": "a string",
    "int": "an integer",
    "float": "a number",
    "bool": "true or false",
}


def _explained(kind: type[Struct], table: Table, place: Place, message: str) -> Exception:
    allowed = tuple(field.encode_name for field in msgspec.structs.fields(kind))
    if found := re.search(r"unknown field `(.*)`", message):
        key = found[1]
        return place.at(key).error(f"unknown key {key!r}: {nearest_spelling(key, allowed)}")
    if found := re.search(r"missing required field `(.*)`", message):
        return place.error(f"the key {found[1]!r} is missing; write {found[1]} = ...")
    expected, got = (str(words) for words in re.findall(r"`([^`$]*)`", message)[:2])
    wanted = " or ".join(_WORDS.get(word, word) for word in expected.split(" | "))
    key = re.search(r"`\$\.(\w+)", message)
    return _mistyped(place.at(key[1]) if key else place, table, wanted, _WORDS.get(got, got))


def _mistyped(place: Place, table: Table, wanted: str, got: str) -> Exception:
    key = place.path[-1]
    shown = f"{key} = {table[str(key)]!r}" if got not in ("a table", "an array") else str(key)
    hint = ""
    if place.path in (("rule",), ("schedule",)):
        hint = f"; head each entry with [[{key}]]"
    elif wanted == "a table":
        header = place.path == ("precision",)
        hint = "; head it with [precision.NAME.GEMM]" if header else f"; write {key} = {{ ... }}"
    return place.error(f"{shown}: expected {wanted}, got {got}{hint}")

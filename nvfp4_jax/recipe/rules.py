"""`[[rule]]`: which layers take which precision.

    [[rule]]
    kind = "mamba.out_proj"
    blocks = { last = 8 }
    precision = "mxfp8"

The selectors of one rule (`match` or `regex`, `kind`, `blocks`) must all hold; the rules of a file
are asked in order, and the first that matches decides. This module knows one rule; `resolve` asks
them in turn.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from nvfp4_jax.quantizer import nearest_spelling
from nvfp4_jax.recipe.blocks import Blocks, decode_blocks
from nvfp4_jax.recipe.errors import Place
from nvfp4_jax.recipe.globs import compile_glob, problem_of
from nvfp4_jax.recipe.kinds import KINDS, kind_of
from nvfp4_jax.recipe.schema import RuleTable, Table, decode, given


@dataclass(frozen=True)
class Rule:
    """One rule.

    Attributes:
      number: its place among the rules of the file, from 1.
      line: the line of its `[[rule]]`.
      precision: the name of the precision that it gives.
      match, regex, kind: selectors; empty where the rule does not use them.
      blocks: the blocks selector, None where the rule does not use it.
      optional: whether it may match no layer of a model.
    """

    number: int
    line: int | None
    precision: str
    match: str = ""
    regex: str = ""
    kind: str = ""
    blocks: Blocks | None = None
    optional: bool = False

    def matches_name(self, path: str) -> bool:
        """Whether every selector but `blocks` holds for the layer at `path`."""
        return (
            (not self.match or compile_glob(self.match).fullmatch(path) is not None)
            and (not self.regex or compile_regex(self.regex).fullmatch(path) is not None)
            and (not self.kind or kind_of(path) == self.kind)
        )

    @property
    def place(self) -> str:
        """`rule 3`, as an error calls it."""
        return f"rule {self.number}"

    @property
    def text(self) -> str:
        """The selectors as a recipe writes them: `kind = "mlp.up", blocks = { last = 8 }`."""
        words = [
            f'{key} = "{getattr(self, key)}"'
            for key in ("match", "regex", "kind")
            if getattr(self, key)
        ]
        words += [f"blocks = {self.blocks}"] if self.blocks else []
        return ", ".join(words)


@lru_cache(maxsize=1024)
def compile_regex(regex: str) -> re.Pattern[str]:
    """`regex` compiled once."""
    return re.compile(regex)


def decode_rules(
    tables: list[Table], precisions: tuple[str, ...], place: Place
) -> tuple[Rule, ...]:
    """The rules of a file, in order.

    Raises:
      RecipeError: no rule at all, or one that is empty, ambiguous or misspelt.
    """
    if not tables:
        raise place.error(
            'there is no rule, so no layer has a precision; end with [[rule]] match = "**" '
            'precision = "bf16"'
        )
    return tuple(
        _rule(table, number, precisions, place.at(number)) for number, table in enumerate(tables)
    )


def _rule(table: Table, number: int, precisions: tuple[str, ...], place: Place) -> Rule:
    fields = given(decode(RuleTable, table, place))
    check_precision_name(fields["precision"], precisions, place)
    for key in ("match", "regex", "kind"):
        if fields.get(key) == "":
            raise place.at(key).error(f'{key} = "" selects nothing; leave it out or fill it in')
    if "match" in fields and "regex" in fields:
        raise place.error("match and regex both select by path; keep one of them")
    if not fields.keys() & {"match", "regex", "kind", "blocks"}:
        raise place.error(
            'this rule selects nothing; give match, regex, kind or blocks (match = "**" is all)'
        )
    _check_selectors(fields, place)
    if "blocks" in fields:
        fields["blocks"] = decode_blocks(fields["blocks"], place.at("blocks"))
    return Rule(number=number + 1, line=place.line, **fields)


def _check_selectors(fields: dict, place: Place) -> None:
    if "match" in fields and (problem := problem_of(fields["match"])):
        raise place.at("match").error(f"match = {fields['match']!r}: {problem}")
    if "kind" in fields and fields["kind"] not in KINDS:
        problem = (
            f"kind = {fields['kind']!r} is not known: {nearest_spelling(fields['kind'], KINDS)}"
        )
        raise place.at("kind").error(problem)
    if "regex" in fields:
        try:
            compile_regex(fields["regex"])
        except re.error as error:
            problem = (
                f"regex = {fields['regex']!r} is no regular expression: {error}; mend it there"
            )
            raise place.at("regex").error(problem) from None


def check_precision_name(name: str, precisions: tuple[str, ...], place: Place) -> None:
    """Raise a `RecipeError` unless `name` is among the `precisions` that the file defines."""
    if name not in precisions:
        raise place.at("precision").error(
            f"precision = {name!r} is not defined in this file: "
            f"{nearest_spelling(name, precisions)}, or write [precision.{name}.GEMM] tables"
        )

"""Which rule decides a layer, and whether the rules fit a model at all.

`choose` asks the rules in order about one path; the first match wins. `check` holds all rules
against all linear layers of a model, and refuses two silences that other stacks keep: a layer
that no rule covers, and a rule that matches nothing because of a slip in its spelling. Whether a
rule matches is judged before precedence, so a rule that earlier ones wholly shadow is fine.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from nvfp4_jax.precision import LinearPrecision
from nvfp4_jax.recipe.blocks import block_index, count_blocks, may_be_scanned
from nvfp4_jax.recipe.errors import RecipeError
from nvfp4_jax.recipe.rules import Rule

SCANNED = (
    "under nn.scan all blocks share one path, so no rule can tell them apart: unroll the blocks, "
    "or write the rule by match or kind"
)


@dataclass(frozen=True)
class Resolved:
    """A layer's precision and why.

    Attributes:
      path: the layer's path, as recipes write it.
      precision: the precision in force.
      precision_name: its name; after a switch it says so: `nvfp4 (fprop: bf16)`.
      rule: number of the rule that decided, from 1.
      reason: that rule in words: `rule 2 (line 20): match = "blocks_*/**"`.
    """

    path: str
    precision: LinearPrecision
    precision_name: str
    rule: int
    reason: str


def choose(rules: tuple[Rule, ...], path: str, num_blocks: int | None, file: str) -> Rule:
    """The first of `rules` that matches the layer at `path`.

    Raises:
      RecipeError: no rule does, or one cannot tell (`applies`).
    """
    for rule in rules:
        if applies(rule, path, num_blocks, file):
            return rule
    raise RecipeError(file, uncovered([path]))


def applies(rule: Rule, path: str, num_blocks: int | None, file: str) -> bool:
    """Whether all selectors of `rule` hold for the layer at `path`.

    Raises:
      RecipeError: the rule counts blocks, and their number is not given or does not allow it, or
        the path has no block number where one is needed.
    """
    if not rule.matches_name(path):
        return False
    if rule.blocks is None:
        return True
    index = block_index(path)
    if index is None:
        if may_be_scanned(path):
            raise at_rule(file, rule, f"the path {path!r} has no block number; {SCANNED}")
        return False
    _check_count(rule, path, index, num_blocks, file)
    return rule.blocks.contains(index, num_blocks)


def check(rules: tuple[Rule, ...], paths: list[str], num_blocks: int | None, file: str) -> None:
    """Hold `rules` against all linear layers of a model; `num_blocks` is counted if not given.

    Raises:
      RecipeError: layers that no rule covers, a rule that matches nothing, or one that `applies`
        refuses.
    """
    if not paths:
        raise RecipeError(file, "the model has no linear layer (no `kernel` with two axes)")
    num_blocks = count_blocks(paths) if num_blocks is None else num_blocks
    for rule in rules:
        if rule.blocks:
            _check_numbered(rule, paths, num_blocks, file)
        matched = [path for path in paths if applies(rule, path, num_blocks, file)]
        if not matched and not rule.optional:
            raise at_rule(file, rule, _matches_nothing(rule, paths))
    left = [path for path in paths if not _covered(rules, path, num_blocks, file)]
    if left:
        raise RecipeError(file, uncovered(left))


def at_rule(file: str, rule: Rule, problem: str, key: str = "") -> RecipeError:
    """A `RecipeError` at a rule, or at a key of it."""
    return RecipeError(file, problem, f"{rule.place}.{key}" if key else rule.place, rule.line)


def uncovered(paths: list[str]) -> str:
    """The message for layers that no rule matches."""
    shown = ", ".join(paths[:3]) + (f" and {len(paths) - 3} more" if len(paths) > 3 else "")
    return (
        f'no rule covers {shown}; end the file with [[rule]] match = "**" and the precision '
        'of the rest, such as "bf16"'
    )


def _covered(rules: tuple[Rule, ...], path: str, num_blocks: int | None, file: str) -> bool:
    return any(applies(rule, path, num_blocks, file) for rule in rules)


def _check_numbered(rule: Rule, paths: list[str], num_blocks: int | None, file: str) -> None:
    indices = {block_index(path) for path in paths} - {None}
    if not indices:
        problem = f"no layer of this model ({paths[0]}, ...) has a block number"
        raise at_rule(file, rule, f"{problem}; {SCANNED}")
    if indices == {0} and num_blocks is not None and num_blocks > 1:
        problem = f"only block 0 of {num_blocks} is found"
        raise at_rule(file, rule, f"{problem}; {SCANNED}")


def _check_count(rule: Rule, path: str, index: int, num_blocks: int | None, file: str) -> None:
    assert rule.blocks is not None
    if num_blocks is not None and index >= num_blocks:
        raise at_rule(
            file,
            rule,
            f"{path!r} lies in block {index}, but num_blocks = {num_blocks}; give the right "
            "number, or, if it lies in no block, an earlier rule that matches it by path",
        )
    if found := rule.blocks.problem_with(num_blocks):
        key, problem = found
        remedy = "pass num_blocks=" if num_blocks is None else "mend it, or use last_fraction"
        raise at_rule(file, rule, f"{problem}; {remedy}", f"blocks.{key}")


def _matches_nothing(rule: Rule, paths: list[str]) -> str:
    word = rule.match or rule.regex or rule.kind
    close = difflib.get_close_matches(word, paths, n=1, cutoff=0.0)
    nearest = f" the nearest path is {close[0]!r};" if word and close else ""
    return (
        f"{rule.text} matches none of the {len(paths)} linear layers;{nearest} "
        "mend it, or add optional = true if this model may lack the layer"
    )

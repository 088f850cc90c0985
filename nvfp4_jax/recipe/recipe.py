"""`Recipe`: everything a run needs to know about precision, as one frozen, hashable value.

A recipe is the text of a TOML file and what was decoded from it. It is static: it can be closed
over, compared and used as a cache key. What changes during a run (`at`), or beside it
(`for_evaluation`), is another recipe with the same rules and other precisions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from nvfp4_jax.precision import GEMMS, LinearPrecision
from nvfp4_jax.recipe.errors import RecipeError
from nvfp4_jax.recipe.explain import Explanation, explain
from nvfp4_jax.recipe.layers import layer_path
from nvfp4_jax.recipe.parse import parse
from nvfp4_jax.recipe.resolve import Resolved, check, choose
from nvfp4_jax.recipe.rules import Rule
from nvfp4_jax.recipe.schedule import Entry, candidate_steps, check_order, in_force


@dataclass(frozen=True)
class NamedPrecision:
    """A precision of a recipe: as the file writes it, and as it is in force.

    Attributes:
      name: the name rules call it by.
      written: what the file says.
      precision: what is in force; differs from `written` after a switch or for evaluation.
      sources: for each of `GEMMS`, the name of the precision it is taken from.
    """

    name: str
    written: LinearPrecision
    precision: LinearPrecision
    sources: tuple[str, ...]

    @property
    def label(self) -> str:
        """What is in force, in words: `nvfp4`, `bf16`, or `nvfp4 (fprop: bf16)`."""
        if len(set(self.sources)) == 1:
            return self.sources[0]
        pairs = zip(GEMMS, self.sources, strict=True)
        changes = [f"{gemm}: {source}" for gemm, source in pairs if source != self.name]
        return f"{self.name} ({', '.join(changes)})"


@dataclass(frozen=True)
class Recipe:
    """A recipe; `load_recipe` and `Recipe.from_text` make one.

    Attributes:
      name: `nvfp4` for recipes/nvfp4.toml.
      text: the file's exact text, whatever step `at` was asked for; a checkpoint keeps it, and
        `Recipe.from_text(text, name)` gives the recipe back.
      source: the file, as errors call it.
      precisions: the named precisions, `bf16` first.
      rules: asked in order.
      schedule: what changes during the run; empty in a recipe that `at` returned.
      evaluation: the name of the precision to evaluate in; None evaluates as it trains.
    """

    name: str
    text: str
    source: str
    precisions: tuple[NamedPrecision, ...]
    rules: tuple[Rule, ...]
    schedule: tuple[Entry, ...]
    evaluation: str | None

    @staticmethod
    def from_text(text: str, name: str, source: str = "") -> Recipe:
        """The recipe that `text`, such as a checkpoint carries it, describes.

        `source` is what errors call the file; left out, `name`.

        Raises:
          RecipeError: as `load_recipe`.
        """
        parts = parse(text, source or name)
        named = [NamedPrecision(n, p, p, (n,) * len(GEMMS)) for n, p in parts.precisions.items()]
        rest = (parts.rules, parts.schedule, parts.evaluation)
        return Recipe(name, text, source or name, tuple(named), *rest)

    @property
    def precision(self) -> dict[str, LinearPrecision]:
        """The precisions in force, by name; `bf16` is among them."""
        return {named.name: named.precision for named in self.precisions}

    @property
    def digest(self) -> str:
        """16 hex digits of what the recipe means: equal through comments, spacing, file names.

        It changes with whatever can change a number: formats and options, rules and their order,
        schedule, evaluation. It is the same in every process. What `at` returns has its own.
        """
        rules = [(rule.text, rule.precision) for rule in self.rules]
        schedule = [(e.start, e.until, e.gemms, e.precision) for e in self.schedule]
        precisions = sorted(self.precision.items())
        meaning = msgspec.json.encode((precisions, rules, schedule, self.evaluation))
        return hashlib.sha256(meaning).hexdigest()[:16]

    def resolve(self, path: str, num_blocks: int | None = None) -> Resolved:
        """The precision of the linear layer at `path` and the rule that chose it.

        `path` is `blocks_3/mlp/up`, or `blocks/3/mlp/up` as NNX has it.

        Raises:
          RecipeError: no rule covers the layer; a rule counts blocks from the end and
            `num_blocks` is not given; or a rule by block meets a path without a block number.
        """
        path = layer_path(path)
        rule = choose(self.rules, path, num_blocks, self.source)
        named = self._named(rule.precision)
        line = f" (line {rule.line})" if rule.line else ""
        reason = f"{rule.place}{line}: {rule.text}"
        return Resolved(path, named.precision, named.label, rule.number, reason)

    def check(self, paths: Iterable[str], num_blocks: int | None = None) -> None:
        """Hold the recipe against the paths of all linear layers of a model.

        `num_blocks` left out is one more than the largest block index among them.

        Raises:
          RecipeError: layers that no rule covers, or a rule that is not optional and matches
            nothing (judged before precedence), or blocks out of the model's range.
        """
        check(self.rules, [layer_path(path) for path in paths], num_blocks, self.source)

    def explain(self, params_or_model: Any, num_blocks: int | None = None) -> Explanation:
        """What each linear layer of a model will do: an `Explanation`, a table and JSON.

        Takes linen's parameters, an NNX module or state, or `jax.ShapeDtypeStruct` in their
        place: nothing is allocated.

        Raises:
          RecipeError: as `check`.
        """
        return explain(self, params_or_model, num_blocks)

    def at(self, step: int, total_steps: int) -> Recipe:
        """The recipe in force at `step` (from 0) of a run of `total_steps`; it has no schedule.

        Raises:
          RecipeError: the entries, steps and fractions mixed, are out of order for this length.
          ValueError: a negative step, or a run of no steps.
          TypeError: not Python integers: a switch is static and cannot depend on a traced step.
        """
        _check_steps(step, total_steps)
        check_order(self.schedule, total_steps, self.source)
        recipe = replace(self, schedule=()) if self.schedule else self
        for entry in in_force(self.schedule, step, total_steps):
            recipe = recipe._with(entry.gemms, entry.precision)
        return recipe

    def switch_points(self, total_steps: int) -> tuple[int, ...]:
        """The steps of a run at which `at` differs from the step before."""
        steps = candidate_steps(self.schedule, total_steps)
        return tuple(step for step in steps if self._switches(step, total_steps))

    def for_evaluation(self) -> Recipe:
        """The recipe for evaluating: every quantized layer takes the evaluation precision."""
        recipe = replace(self, schedule=()) if self.schedule else self
        return recipe if self.evaluation is None else recipe._with(GEMMS, self.evaluation)

    def require_no_schedule(self) -> None:
        """What is put into a layer holds for all steps, so the schedule must be settled first.

        Raises:
          RecipeError: the recipe has a schedule.
        """
        if self.schedule:
            problem = (
                "a layer keeps one precision; pass recipe.at(step, total_steps), again after each "
                "of recipe.switch_points(total_steps), or recipe.for_evaluation()"
            )
            raise RecipeError(self.source, problem, "schedule")

    def _named(self, name: str) -> NamedPrecision:
        return next(named for named in self.precisions if named.name == name)

    def _switches(self, step: int, total_steps: int) -> bool:
        before, after = self.at(step - 1, total_steps), self.at(step, total_steps)
        return before.precision != after.precision

    def _with(self, gemms: tuple[str, ...], target: str) -> Recipe:
        # What is governed is read from the file's own words: a precision that an earlier change
        # took to bf16 is still one that the next change may speak of.
        changed = [
            self._taking(named, gemms, target) if named.written.quantized else named
            for named in self.precisions
        ]
        return replace(self, precisions=tuple(changed))

    def _taking(self, named: NamedPrecision, gemms: tuple[str, ...], target: str) -> NamedPrecision:
        pairs = zip(GEMMS, named.sources, strict=True)
        sources = {gemm: target if gemm in gemms else source for gemm, source in pairs}
        taken = {gemm: getattr(self._named(s).written, gemm) for gemm, s in sources.items()}
        packed = named.written.residuals == "packed" and taken["wgrad"].input != "bf16"
        precision = LinearPrecision(**taken, residuals="packed" if packed else "bf16")
        return replace(named, precision=precision, sources=tuple(sources.values()))


def _check_steps(step: int, total_steps: int) -> None:
    for name, value in (("step", step), ("total_steps", total_steps)):
        if not isinstance(value, int) or isinstance(value, bool):
            raise TypeError(
                f"{name} = {value!r} is no Python integer; a switch is static: call "
                "recipe.at outside jit"
            )
    if step < 0 or total_steps < 1:
        raise ValueError(f"step = {step} of {total_steps}: give step >= 0 and total_steps >= 1")

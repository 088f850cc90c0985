"""What is wrong with a recipe, said so that it can be mended.

A recipe decides the arithmetic of a run that may cost weeks, so nothing in it is guessed. Every
error is a `RecipeError` of one shape,

    FILE: PLACE (line N): PROBLEM; REMEDY

and a `Place` carries the first three along while the tables of the file are decoded.
"""

from __future__ import annotations

from dataclasses import dataclass

from nvfp4_jax.recipe.lines import Key, Lines

# In the file an entry of these is headed [[rule]] or [[schedule]]; people count from 1.
COUNTED = {"rule": "rule", "schedule": "schedule entry"}


class RecipeError(ValueError):
    """A recipe that cannot be honoured.

    Attributes:
      file: the recipe's file, or the name it was given if its text came from elsewhere.
      place: where in it, such as `precision.nvfp4.fprop.input.format` or `rule 3`; may be empty.
      line: the line of that place, counted from 1, or None where there is none.
      problem: what is wrong and what to do about it.
    """

    def __init__(self, file: str, problem: str, place: str = "", line: int | None = None):
        self.file, self.problem, self.place, self.line = file, problem, place, line
        where = f"line {line}" if line else ""
        if place:
            where = f"{place} ({where})" if where else place
        super().__init__(": ".join(part for part in (file, where, problem) if part))

    def __reduce__(self):
        """Pickle by the four parts, so that the error survives a process boundary."""
        return type(self), (self.file, self.problem, self.place, self.line)


@dataclass(frozen=True)
class Place:
    """A table or key of a recipe file: which file, the keys that lead to it, and its lines."""

    file: str
    lines: Lines
    path: tuple[Key, ...] = ()

    def at(self, *keys: Key) -> Place:
        """The place of a key inside this table."""
        return Place(self.file, self.lines, (*self.path, *keys))

    @property
    def line(self) -> int | None:
        """The line of this key, or of the nearest table around it that has one."""
        return self.lines.of(self.path)

    def error(self, problem: str) -> RecipeError:
        """A `RecipeError` at this place."""
        return RecipeError(self.file, problem, str(self), self.line)

    def __str__(self) -> str:
        """`precision.nvfp4.fprop.input`, `rule 3`, `rule 3.blocks.last`."""
        path = list(self.path)
        if len(path) > 1 and path[0] in COUNTED and isinstance(path[1], int):
            path[:2] = [f"{COUNTED[str(path[0])]} {path[1] + 1}"]
        return ".".join(f"[{key}]" if isinstance(key, int) else key for key in path)

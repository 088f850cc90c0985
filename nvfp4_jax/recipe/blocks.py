"""Rules by block: the first two, the last eight, the last 15%, these.

    blocks = { first = 2, last = 8, last_fraction = 0.15, index = [0, 1, 61] }

Any of the keys may select a block. A block's index is the number in the first `name_N` of a
layer's path, so `blocks_7/mlp/up` lies in block 7 and `head` in none.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from math import floor

from nvfp4_jax.recipe.errors import Place
from nvfp4_jax.recipe.kinds import kind_of
from nvfp4_jax.recipe.schema import BlocksTable, Table, decode, given

_NUMBERED = re.compile(r"[^/]*_(\d+)")
_STACK = re.compile(r"(.*_)?(blocks?|layers?|scan\w*|stack)", re.IGNORECASE)


@dataclass(frozen=True)
class Blocks:
    """Which blocks a rule speaks of; 0 and () select none."""

    first: int = 0
    last: int = 0
    last_fraction: float = 0.0
    index: tuple[int, ...] = ()

    @property
    def needs_count(self) -> bool:
        """Whether the number of blocks must be known: what counts from the end."""
        return bool(self.last or self.last_fraction)

    def contains(self, block: int, num_blocks: int | None) -> bool:
        """Whether block number `block`, from 0, is selected out of `num_blocks`."""
        if block < self.first or block in self.index:
            return True
        if num_blocks is None:
            return False
        tail = max(self.last, round_half_up(self.last_fraction, num_blocks))
        return block >= num_blocks - tail

    def problem_with(self, num_blocks: int | None) -> tuple[str, str] | None:
        """(key, problem) if a model of `num_blocks` blocks cannot have these; None if it can."""
        if num_blocks is None:
            key = "last" if self.last else "last_fraction"
            return (key, f"{key} needs the number of blocks") if self.needs_count else None
        size = f"the model has {num_blocks} blocks"
        for key in ("first", "last"):
            if getattr(self, key) > num_blocks:
                return key, f"{key} = {getattr(self, key)} is out of range: {size}"
        if outside := [i for i in self.index if i >= num_blocks]:
            return "index", f"index {outside[0]} is out of range: {size}, 0 to {num_blocks - 1}"
        return None

    def __str__(self) -> str:
        """As a recipe writes it: `{ first = 2, last = 8 }`."""
        fields = {"first": self.first, "last": self.last, "last_fraction": self.last_fraction}
        words = [f"{key} = {value}" for key, value in fields.items() if value]
        words += [f"index = {list(self.index)}"] if self.index else []
        return "{ " + ", ".join(words) + " }"


def round_half_up(fraction: float, count: int) -> int:
    """`fraction * count` to the nearest integer, halves up: 0.15 of 10 blocks is 2.

    The fraction is taken as the decimal it was written as, so that 0.35 of 10 is 3.5 and becomes
    4, whatever the binary float next to 0.35 would give.
    """
    return floor(Fraction(repr(float(fraction))) * count + Fraction(1, 2))


def block_index(path: str) -> int | None:
    """The number in the first `name_N` of `path`, None if no name of it ends in a number."""
    found = (_NUMBERED.fullmatch(name) for name in path.split("/"))
    return next((int(match[1]) for match in found if match), None)


def may_be_scanned(path: str) -> bool:
    """Whether a path without a number may stand for many blocks, as under `nn.scan`.

    True for a layer of a known kind, which lies in a block if anything does, and for a layer
    below a name such as `layers`; False for a `head`.
    """
    *around, _ = path.split("/")
    return kind_of(path) is not None or any(_STACK.fullmatch(name) for name in around)


def count_blocks(paths: list[str]) -> int | None:
    """One more than the largest block index in `paths`; None where no path has one."""
    indices = [index for path in paths if (index := block_index(path)) is not None]
    return max(indices) + 1 if indices else None


def decode_blocks(table: Table, place: Place) -> Blocks:
    """`blocks = { ... }` of a rule.

    Raises:
      RecipeError: an empty table, or a number that can select nothing.
    """
    fields = given(decode(BlocksTable, table, place))
    if not fields:
        raise place.error("blocks = {} selects nothing; give first, last, last_fraction or index")
    for key in ("first", "last"):
        if key in fields and fields[key] < 1:
            raise place.at(key).error(f"{key} = {fields[key]} selects nothing; give 1 or more")
    if "last_fraction" in fields and not 0 < fields["last_fraction"] <= 1:
        raise place.at("last_fraction").error(
            f"last_fraction = {fields['last_fraction']} is outside (0, 1]; 0.15 is the last 15%"
        )
    if "index" in fields:
        fields["index"] = _indices(fields["index"], place.at("index"))
    return Blocks(**fields)


def _indices(indices: list[int], place: Place) -> tuple[int, ...]:
    if not indices:
        raise place.error("index = [] selects nothing; give numbers from 0, or leave it out")
    for index in indices:
        if index < 0:
            raise place.error(f"index {index} is negative; count from 0, or use last = {-index}")
        if indices.count(index) > 1:
            raise place.error(f"index {index} is given twice; give it once")
    return tuple(indices)

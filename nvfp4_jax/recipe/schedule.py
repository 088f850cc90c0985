"""`[[schedule]]`: another precision for some GEMMs in part of the run.

    [[schedule]]
    from = 0.82            # a float is a fraction of the run, an integer is a step
    gemms = ["fprop"]      # all three if left out
    precision = "bf16"

From that step on (and before `until`, where given) every layer whose precision is quantized takes
the named GEMMs of the given precision; layers that a rule keeps in bf16 are not touched. Later
entries override earlier ones. All of it is static: which entries are in force is known from the
step alone, so a restart lands on the right side of a switch, and a switch is a recompilation.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import ceil

from nvfp4_jax.precision import GEMMS
from nvfp4_jax.quantizer import nearest_spelling
from nvfp4_jax.recipe.errors import Place, RecipeError
from nvfp4_jax.recipe.rules import check_precision_name
from nvfp4_jax.recipe.schema import ScheduleTable, Table, decode, given

When = int | float


@dataclass(frozen=True)
class Entry:
    """One entry of the schedule: in force at `start <= step < until`.

    Attributes:
      number, line: its place in the file.
      start, until: a step (int) or a fraction of the run (float); `until` None is the end.
      gemms: the GEMMs that change.
      precision: the name of the precision they take.
    """

    number: int
    line: int | None
    start: When
    until: When | None
    gemms: tuple[str, ...]
    precision: str

    @property
    def text(self) -> str:
        """`from 0.82: fprop in bf16`."""
        end = "" if self.until is None else f" until {self.until}"
        gemms = "all GEMMs" if set(self.gemms) == set(GEMMS) else ", ".join(self.gemms)
        return f"from {self.start}{end}: {gemms} in {self.precision}"


def first_step(when: When, total_steps: int) -> int:
    """The first step that is not before `when`: 0.82 of 1000 is 820, of 55 is 46.

    A fraction is taken as the decimal it was written as: 0.07 of 100 is 7, though the product of
    floats is above 7.
    """
    return ceil(Fraction(repr(when)) * total_steps) if isinstance(when, float) else when


def in_force(entries: tuple[Entry, ...], step: int, total_steps: int) -> tuple[Entry, ...]:
    """The entries that hold at `step`, the earliest first."""
    return tuple(
        entry
        for entry in entries
        if first_step(entry.start, total_steps) <= step
        and (entry.until is None or step < first_step(entry.until, total_steps))
    )


def candidate_steps(entries: tuple[Entry, ...], total_steps: int) -> list[int]:
    """Every step inside the run, 0 excluded, at which an entry starts or ends."""
    ends = [end for entry in entries for end in (entry.start, entry.until) if end is not None]
    steps = {first_step(end, total_steps) for end in ends}
    return sorted(step for step in steps if 0 < step < total_steps)


def check_order(entries: tuple[Entry, ...], total_steps: int, file: str) -> None:
    """Steps and fractions mixed can be put in order only once the run's length is known.

    Raises:
      RecipeError: for `total_steps` an entry starts before the one above it, or ends before it
        starts.
    """
    earliest = 0
    for entry in entries:
        start = first_step(entry.start, total_steps)
        place = f"schedule entry {entry.number}"
        if start < earliest:
            problem = f"starts at step {start} of {total_steps}, before the entry above it"
            raise RecipeError(file, f"{problem}; order the entries", place, entry.line)
        if entry.until is not None and first_step(entry.until, total_steps) < start:
            problem = f"until = {entry.until} is before from = {entry.start} in {total_steps} steps"
            raise RecipeError(file, f"{problem}; give a later until", place, entry.line)
        earliest = start


def decode_schedule(
    tables: list[Table], precisions: tuple[str, ...], place: Place
) -> tuple[Entry, ...]:
    """The schedule of a file, in order.

    Raises:
      RecipeError: an unknown GEMM or precision, a time outside the run, or entries out of order.
    """
    entries: list[Entry] = []
    for number, table in enumerate(tables):
        entry = _entry(table, number, precisions, place.at(number))
        if entries and _before(entry.start, entries[-1].start):
            problem = f"from = {entry.start} is before the {entries[-1].start} of the entry above"
            raise place.at(number, "from").error(f"{problem}; write the entries in order")
        entries.append(entry)
    return tuple(entries)


def _entry(table: Table, number: int, precisions: tuple[str, ...], place: Place) -> Entry:
    fields = given(decode(ScheduleTable, table, place))
    check_precision_name(fields["precision"], precisions, place)
    start, until = fields["start"], fields.get("until")
    _check_time("from", start, place)
    if until is not None:
        _check_time("until", until, place)
        if until == start or _before(until, start):
            raise place.at("until").error(
                f"until = {until} is not after from = {start}; give a later one or leave it out"
            )
    gemms = _gemms(fields.get("gemms", list(GEMMS)), place.at("gemms"))
    return Entry(number + 1, place.line, start, until, gemms, fields["precision"])


def _gemms(names: list[str], place: Place) -> tuple[str, ...]:
    if not names:
        raise place.error("gemms = [] changes nothing; leave it out for all three")
    for name in names:
        if name not in GEMMS:
            raise place.error(f"{name!r} is no GEMM: {nearest_spelling(name, GEMMS)}")
        if names.count(name) > 1:
            raise place.error(f"{name!r} is given twice; give it once")
    return tuple(name for name in GEMMS if name in names)


def _check_time(key: str, when: When, place: Place) -> None:
    if isinstance(when, float) and not 0 <= when <= 1:
        raise place.at(key).error(
            f"{key} = {when} is no fraction of the run; a float lies in 0..1, write an integer "
            "for a step"
        )
    if when < 0:
        raise place.at(key).error(f"{key} = {when} is negative; steps count from 0")
    if key == "from" and isinstance(when, float) and when == 1:
        raise place.at(key).error(
            "from = 1.0 is the end of the run, so this never holds; give a smaller fraction, or "
            "1 for the step"
        )


def _before(one: When, other: When) -> bool:
    return type(one) is type(other) and one < other

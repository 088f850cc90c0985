"""Sections of figures, as a table to read and as JSON to keep."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
from rich import box
from rich.console import Console
from rich.table import Table

ON_A_CPU = "Measured on a CPU: these figures say nothing of a GPU."
WIDE = 140  # columns, where there is no terminal to ask
Row = Mapping[str, Any]


class Column(NamedTuple):
    """A column of a table: the key of its rows, a heading, and how a value is written."""

    key: str
    heading: str
    form: str = ""


@dataclass(frozen=True)
class Section:
    """One benchmark's figures.

    Attributes:
      name: the benchmark's.
      title: what was measured, in a line above the table.
      columns: what the table shows of the rows, which hold more.
      rows: what the JSON holds; the keys name the units.
      facts: figures of the whole section.
    """

    name: str
    title: str
    columns: Sequence[Column]
    rows: Sequence[Row]
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"title": self.title, **self.facts, "rows": [dict(row) for row in self.rows]}


def device() -> dict[str, Any]:
    """What was measured on, and with what."""
    first = jax.devices()[0]
    return {"platform": first.platform, "name": first.device_kind, "jax": jax.__version__}


def console() -> Console:
    """Standard output, wide where there is no terminal, so that no cell is cut."""
    out = Console()
    return out if out.is_terminal else Console(width=WIDE)


def show(console: Console, section: Section) -> None:
    """Print a section as a table."""
    title = f"{section.title}\n{jax.devices()[0].device_kind}"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for column in section.columns:
        right = any(isinstance(row.get(column.key), int | float) for row in section.rows)
        table.add_column(column.heading, justify="right" if right else "left", no_wrap=True)
    for row in section.rows:
        table.add_row(*(_cell(row.get(column.key), column.form) for column in section.columns))
    console.print(table)


def _cell(value: Any, form: str) -> str:
    return "-" if value is None else format(value, form)

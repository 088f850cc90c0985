"""Plain text tables: columns as wide as their widest cell, two spaces between them."""

from __future__ import annotations

from collections.abc import Sequence

GAP = "  "


def text_table(
    header: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()
) -> str:
    """`rows` under `header` and a rule; the columns numbered in `right` are right-aligned.

    A cell may have several lines; its row then takes as many.
    """
    lines = [cells for row in (header, *rows) for cells in _split(row)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    rule = ["-" * width for width in widths]
    height = len(_split(header))
    body = [*lines[:height], rule, *lines[height:]]
    return "\n".join(_line(cells, widths, right) for cells in body)


def _split(row: Sequence[str]) -> list[list[str]]:
    cells = [cell.split("\n") for cell in row]
    height = max(map(len, cells))
    padded = [cell + [""] * (height - len(cell)) for cell in cells]
    return [list(line) for line in zip(*padded, strict=True)]


def _line(cells: Sequence[str], widths: Sequence[int], right: Sequence[int]) -> str:
    aligned = (
        cell.rjust(width) if column in right else cell.ljust(width)
        for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
    )
    return GAP.join(aligned).rstrip()

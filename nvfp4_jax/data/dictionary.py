"""A dictionary of dictd: `.dict.dz`, compressed by gzip's rules, and an index of its entries.

    headword \\t offset \\t length       both in base 64, digits A-Z a-z 0-9 + /

Entries are short, a line to a few; those whose headwords begin alike are one document, in the
order of the index, each entry once though several headwords may point to it.
"""

from __future__ import annotations

import itertools
import string
from collections.abc import Iterator

DIGITS = {
    d: i for i, d in enumerate(string.ascii_uppercase + string.ascii_lowercase + "0123456789+/")
}
ABOUT = "00-database"  # headwords that describe the dictionary itself
LETTERS = 3


def dictionary_pages(text: bytes, index: bytes) -> Iterator[tuple[str, str]]:
    """(first letters, their entries) of all that begin with these letters."""
    seen = set()
    entries = (line.split("\t") for line in index.decode(errors="replace").splitlines())
    for letters, group in itertools.groupby(entries, lambda entry: entry[0][:LETTERS].lower()):
        page = []
        for headword, *place in group:
            start, length = (number(digits) for digits in place[:2])
            if start not in seen and not headword.startswith(ABOUT):
                seen.add(start)
                page.append(text[start : start + length].decode(errors="replace"))
        if page:
            yield letters, "\n".join(page)


def number(digits: str) -> int:
    """A number of the index, the highest digit first."""
    value = 0
    for digit in digits:
        value = value * 64 + DIGITS[digit]
    return value

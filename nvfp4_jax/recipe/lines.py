"""On which line of a TOML file a key stands.

`tomllib` gives values without positions. So the text is read a second time, for headers
(`[precision.nvfp4.fprop]`, `[[rule]]`) and for the keys at the start of a statement; what sits
deeper, inside an inline table, is placed at the statement that holds it. The text has been parsed
by then, so this scan may take its syntax for granted.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator

Key = str | int

_STRING = r'"""(?:\\.|[^\\])*?"{3,5}|\'\'\'.*?\'{3,5}|"(?:\\.|[^"\\\n])*"|\'[^\'\n]*\''
_TOKEN = re.compile(rf"(?P<string>{_STRING})|(?P<comment>#[^\n]*)|.", re.DOTALL)


class Lines:
    """The lines of a recipe's keys: `Lines(text).of(("rule", 0, "match"))`."""

    def __init__(self, text: str):
        self._line: dict[tuple[Key, ...], int] = {}
        self._array: dict[tuple[Key, ...], int] = {}
        table: tuple[Key, ...] = ()
        for line, statement in statements(text):
            if statement.startswith("["):
                table = self._header(statement)
                path = table
            else:
                path = self._inside(table, _keys(f"{_left_of_equals(statement)} = 0"))
            for depth in range(1, len(path) + 1):
                self._line.setdefault(path[:depth], line)

    def of(self, path: tuple[Key, ...]) -> int | None:
        """The line of the longest part of `path` that has one, None for the file as a whole."""
        known = (path[:depth] for depth in range(len(path), 0, -1) if path[:depth] in self._line)
        return next((self._line[part] for part in known), None)

    def _header(self, statement: str) -> tuple[Key, ...]:
        path = self._inside((), _keys(statement))
        if not statement.startswith("[["):
            return path
        self._array[path] = self._array.get(path, -1) + 1
        return (*path, self._array[path])

    def _inside(self, table: tuple[Key, ...], keys: list[str]) -> tuple[Key, ...]:
        # [rule.blocks] after [[rule]] speaks of the last rule; the last key names what is new.
        path = table
        for key in keys[:-1]:
            path = (*path, key)
            path = (*path, self._array[path]) if path in self._array else path
        return (*path, keys[-1])


def statements(text: str) -> Iterator[tuple[int, str]]:
    """(line, statement) for each statement: a header, or a key and its value over all its lines."""
    line, start, depth, parts = 1, 1, 0, []
    for token in _TOKEN.finditer(text + "\n"):
        word = token[0]
        if word == "\n" and depth == 0:
            if statement := "".join(parts).strip():
                yield start, statement
            parts = []
        elif not token["comment"]:
            start = start if "".join(parts).strip() else line
            parts.append(word)
            depth += (word in "[{") - (word in "]}") if len(word) == 1 else 0
        line += word.count("\n")
    if rest := "".join(parts).strip():  # a bracket that is never closed
        yield start, rest


def _left_of_equals(statement: str) -> str:
    for token in _TOKEN.finditer(statement):
        if token[0] == "=":
            return statement[: token.start()]
    return statement


def _keys(statement: str) -> list[str]:
    # A header or `key = 0` is a TOML document of its own: let tomllib read the dots and quotes.
    keys, value = [], tomllib.loads(statement)
    while value:
        (key, value), *_ = value.items()
        keys.append(key)
        value = value[0] if isinstance(value, list) else value
    return keys

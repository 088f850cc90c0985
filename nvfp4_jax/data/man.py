"""A manual page (roff with the man macros) as text, near enough to read.

Macros that begin a paragraph end a line; headings, tags and fonts keep their words; definitions,
conditions and comments, which no reader sees, are left out. Not a typesetter: no widths, no tables.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

HEADINGS = frozenset((".SH", ".SS", ".TP", ".IP", ".TH"))
WORDS = frozenset((".B", ".I", ".BR", ".RB", ".BI", ".IB", ".IR", ".RI", ".SM", ".SB"))
BREAKS = frozenset((".PP", ".P", ".LP", ".br", ".sp", ".Vb", ".Ve", ".RS", ".RE", ".nf", ".fi"))
# Escapes and the strings that pod2man defines.
NAMED = {
    "C`": '"', "C'": '"', "L\"": '"', "R\"": '"', "--": "--", "Aq": "'", "aq": "'", "dq": '"',
    "lq": '"', "rq": '"', "oq": "'", "cq": "'", "em": "--", "en": "-", "bu": "*", "co": "(c)",
    "ti": "~", "ha": "^", "rs": "\\", "mu": "x", "pl": "+", "mi": "-", "PI": "pi",
    "S": "", "R": "(R)",
}  # fmt: skip
_ESCAPE = re.compile(
    r"""\\(?: (?P<zero>[&|^)/,%:!{}]|[fFs]\[[^]]*]|f\(..|f.|s[-+]?\d|[hvm]'[^']*')
      | [*]?(?:\((?P<two>..)|\[(?P<long>[^]]*)]) | \*(?P<one>.) | (?P<plain>.) )""",
    re.VERBOSE,
)
_PLAIN = {"e": "\\", "-": "-", " ": " ", "~": " ", "0": " ", "'": "'", "`": "`", "t": "\t", "c": ""}


def man_text(page: bytes) -> str:
    """The text of a manual page; empty if it only points to another."""
    lines = _text_lines(page.decode(errors="replace").splitlines())
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()


def _text_lines(lines: list[str]) -> Iterator[str]:
    for line in _visible(lines):
        if not line.startswith((".", "'")):
            yield _unescaped(line)
            continue
        macro, _, rest = line.partition(" ")
        if macro in BREAKS:
            yield ""
        elif macro in HEADINGS:
            yield "\n" + " ".join(_arguments(rest)[: 4 if macro != ".IP" else 1])
        elif macro in WORDS:
            words = _arguments(rest)
            yield (" " if len(macro) == 2 else "").join(words)


def _visible(lines: list[str]) -> Iterator[str]:
    """Without comments, macros' definitions, and what stands between the braces of conditions."""
    depth, defining = 0, False
    for line in lines:
        if defining:
            defining = line.rstrip() != ".."
            continue
        line = re.sub(r'(^|[^\\])\\".*', r"\1", line)
        hidden = depth > 0 or line.startswith((".if", ".ie", ".el", ".\\}"))
        depth += line.count("\\{") - line.count("\\}")
        if line.startswith((".de", ".am")):
            defining = True
        elif not hidden:
            yield line


def _arguments(text: str) -> list[str]:
    return [_unescaped(a or b) for a, b in re.findall(r'"((?:[^"]|"")*)"|(\S+)', text)]


def _unescaped(text: str) -> str:
    return _ESCAPE.sub(_character, text)


def _character(match: re.Match[str]) -> str:
    if match["zero"] is not None:
        return ""
    if match["plain"] is not None:
        return _PLAIN.get(match["plain"], match["plain"])
    name = match["two"] or match["long"] or match["one"] or ""
    if re.fullmatch(r"u[0-9A-F]{4,5}", name):
        return chr(int(name[1:], 16))
    return NAMED.get(name, "")

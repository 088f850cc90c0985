"""Globs over layer paths: `*` stays inside one name, `**` crosses slashes.

| glob           | matches                                 | not                  |
|----------------|-----------------------------------------|----------------------|
| `blocks_*/**`  | `blocks_3/mlp/up`                       | `blocks_3`, `head`   |
| `**/up`        | `up`, `blocks_3/mlp/up`                 | `blocks_3/mlp/gate`  |
| `*/mlp/up`     | `blocks_3/mlp/up`                       | `a/blocks_3/mlp/up`  |
| `a/**/b`       | `a/b`, `a/x/b`, `a/x/y/b`               | `a/xb`               |

`**/` at the start of a name stands for any number of whole names, none included; any other `**`
for any characters. There is nothing else: `?`, `[ab]` and `{a,b}` are left to `regex`.
"""

from __future__ import annotations

import re
from functools import lru_cache

_FOREIGN = re.compile(r"[?\[\]{}!\\|^$+()]")
_PIECE = re.compile(r"(?:(?<=/)|^)\*\*/|\*\*|\*|[^*]+")


def problem_of(glob: str) -> str | None:
    """Why `glob` can match no layer path as meant, and the remedy; None if it is sound."""
    if found := _FOREIGN.search(glob):
        return f'a glob knows only * and **, not {found[0]!r}; use regex = "..." for more'
    if "***" in glob:
        return "*** has no meaning; write * (inside one name) or ** (across slashes)"
    if not all(glob.split("/")):
        return "a path has no empty names; write no slash at either end and no // inside"
    if found := re.search(r"(\w+)/(\d+)(?=/|$)", glob):
        return (
            f"no layer path has a number as a name: write {found[1]}_{found[2]} "
            f"for {found[1]}/{found[2]}"
        )
    return None


@lru_cache(maxsize=1024)
def compile_glob(glob: str) -> re.Pattern[str]:
    """The regular expression whose `fullmatch` is the glob's match."""
    return re.compile("".join(map(_translate, _PIECE.findall(glob))), re.DOTALL)


def _translate(piece: str) -> str:
    wild = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*"}
    return wild.get(piece) or re.escape(piece)

"""A manual in GNU Info: its nodes are documents.

    \\x1f
    File: python3.11.info,  Node: json,  Next: mailbox,  Up: Internet Data Handling

    the text of the node
    \\x1f
    Tag Table: ...

Menus stay, since they are tables of contents; the lines that only point to neighbours go.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

_NODE = re.compile(r"^\s*File: [^\n]*?Node: (?P<name>[^\n,\t]+)[^\n]*\n")
_REFERENCE = re.compile(r"\*note ([^:]+)::?")


def info_nodes(manual: bytes) -> Iterator[tuple[str, str]]:
    """(name, text) of every node, in order; tables for programs are no nodes."""
    for piece in manual.decode(errors="replace").split("\x1f"):
        if heading := _NODE.match(piece):
            text = _REFERENCE.sub(r"\1", piece[heading.end() :])
            yield heading["name"].strip(), text.strip()

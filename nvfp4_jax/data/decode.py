"""Files of documentation to documents of plain text, by what their names say they are.

*.gz                 decompressed, and then one of
*.html               html          one document
man*/*.1, *.3perl    man           one document
*.info               info          a document for each node
*.dict.dz, *.index   dictionary    a document for each beginning of a headword
anything else        as it is, if it is text
"""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Iterable, Iterator

from nvfp4_jax.data.dictionary import dictionary_pages
from nvfp4_jax.data.html import html_text
from nvfp4_jax.data.info import info_nodes
from nvfp4_jax.data.man import man_text
from nvfp4_jax.training.corpus import Document
from nvfp4_jax.training.errors import UsageError

DICTIONARY = (".dict.dz", ".index")
_MANUAL = re.compile(r"(^|/)man\d[^/]*/[^/]+\.\d\w*$")


def decode_all(files: Iterable[tuple[str, bytes]]) -> Iterator[Document]:
    """The documents of files, given as (path, content); a dictionary is read with its index."""
    waiting: dict[str, bytes] = {}
    for path, data in files:
        kind = next((kind for kind in DICTIONARY if path.endswith(kind)), None)
        if kind is None:
            yield from decode(path, data)
            continue
        waiting[path] = data
        text, index = (path.removesuffix(kind) + suffix for suffix in DICTIONARY)
        if text in waiting and index in waiting:
            pages = dictionary_pages(decompress(text, waiting[text]), waiting[index])
            for letters, page in pages:
                yield Document(f"{text}#{letters}", page.encode())


def decode(path: str, data: bytes) -> Iterator[Document]:
    """The documents of a file; what is no text in the end is still handed on, as it was."""
    if path.endswith(".gz"):
        yield from decode(path.removesuffix(".gz"), decompress(path, data))
    elif path.endswith(".info"):
        for node, text in info_nodes(data):
            yield Document(f"{path}#{node}", text.encode())
    elif path.endswith(".html"):
        yield Document(path, html_text(data).encode())
    elif _MANUAL.search(path):
        yield Document(path, man_text(data).encode())
    else:
        yield Document(path, data)


def decompress(path: str, data: bytes) -> bytes:
    """What gzip compressed, or a `UsageError` that names the file."""
    try:
        return gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise UsageError(f"cannot decompress {path}: {error}") from None

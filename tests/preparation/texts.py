"""Small sources of text, and a folder prepared from them."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
from rich.console import Console

from nvfp4_jax.data.options import Prepare
from nvfp4_jax.data.prepare import prepare
from nvfp4_jax.training.prepared import PreparedCorpus

WORDS = ("ein", "Häuschen", "im", "Grünen", "1234", "<|endoftext|>", "日本", "\n  if x:", "🙂")


def text(seed: int) -> str:
    """A document that no other seed has; several scripts, and the name of a special token."""
    return f"{seed}: " + " ".join(WORDS[(seed * k + k * k) % len(WORDS)] for k in range(20 + seed))


def write_folder(folder: Path, count: int = 40) -> Path:
    """A folder of `count` text files, in two folders."""
    for i in range(count):
        path = folder / ("a", "b/c")[i % 2] / f"{i:03}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text(i))
    return folder


def write_json_lines(path: Path, texts: list[str], field: str = "text") -> Path:
    """A .jsonl file with these texts."""
    path.write_text("".join(json.dumps({"id": i, field: t}) + "\n" for i, t in enumerate(texts)))
    return path


def write_parquet(path: Path, texts: list[str | None], field: str = "text") -> Path:
    """A .parquet file with these texts."""
    table = pyarrow.table({"id": list(range(len(texts))), field: pyarrow.array(texts, "string")})
    pyarrow.parquet.write_table(table, path)
    return path


def prepared(out: Path, *sources: Path | str, **options) -> PreparedCorpus:
    """What the command makes of the sources."""
    words = tuple(str(source) for source in sources)
    return prepare(Prepare(sources=words, out=out, **options), Console(file=io.StringIO()))

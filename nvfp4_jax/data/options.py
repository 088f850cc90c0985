"""What a person can choose about `nvfp4 data`; without JAX, so that help comes at once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro


@dataclass(frozen=True, kw_only=True)
class Prepare:
    """Turn texts into token shards that `nvfp4 train --data` reads.

    Attributes:
      sources: Folders of text files, .jsonl and .parquet files, or debian-docs: documentation of
        nine Debian packages, downloaded by apt-get, 187 MB of text.
      out: Folder to make; it appears when it is whole.
      vocabulary: Tokens of the BPE that is trained on the text; 32768 if left out.
      tokenizer: The tokenizer.json of another tokenizer, or bytes; one is trained if left out.
      separator: The token of that tokenizer which opens every document, such as <|endoftext|>.
      field: Where .jsonl objects and .parquet tables have their text.
      shard_tokens: Tokens a shard.
      packages: Folder for downloaded packages, kept for the next time; those in it are not
        downloaded again.
      any_version: Take the versions of packages that apt-get offers now, whatever they are.
    """

    sources: tyro.conf.Positional[tuple[str, ...]]
    out: Path
    vocabulary: int | None = None
    tokenizer: str | None = None
    separator: str | None = None
    field: str = "text"
    shard_tokens: int = 2**25
    packages: Path | None = None
    any_version: bool = False


@dataclass(frozen=True, kw_only=True)
class Verify:
    """Read a prepared folder through, and compare every file's SHA-256 with its manifest.

    Attributes:
      folder: What `nvfp4 data prepare` made.
    """

    folder: tyro.conf.Positional[Path]

"""The packed stream: all documents of a corpus as one long line of tokens.

    255 'i' 'm' 'p' 'o' 'r' 't' ... 255 'd' 'e' 'f' ... 255 ...

Each document is opened by a separator, a token that no document contains. What reads a stream
asks for tokens start to stop and knows neither files nor shards, so a text in memory and shards on
disk make the same batches.

Where tokens are bytes, 255 is free to separate them: no UTF-8 text contains it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from nvfp4_jax.training.corpus import Document

SEPARATOR = 255
VOCABULARY = 256  # what the byte tokenizer can produce; a model's vocabulary is at least this


class Stream(Protocol):
    """Tokens by their place.

    Attributes:
      separator: the token that opens every document.
      token_bytes: (vocabulary,) how many bytes of text each token stands for.
    """

    separator: int
    token_bytes: np.ndarray

    def __len__(self) -> int:
        """How many tokens, separators included."""
        ...

    def read(self, start: int, stop: int) -> np.ndarray:
        """Tokens `start` to `stop`, 0 <= start <= stop <= len, as (stop - start,) int32."""
        ...


class ByteStream:
    """Documents in memory, a byte a token."""

    separator = SEPARATOR
    token_bytes = np.ones(VOCABULARY, np.uint8)

    def __init__(self, documents: Sequence[Document]) -> None:
        """Lay `documents` end to end; none of them contains the byte 255."""
        opened = [bytes([SEPARATOR]) + document.data for document in documents]
        self._tokens = np.frombuffer(b"".join(opened), np.uint8)

    def __len__(self) -> int:
        return self._tokens.size

    def read(self, start: int, stop: int) -> np.ndarray:
        """As `Stream`."""
        return self._tokens[start:stop].astype(np.int32)


def as_stream(text: Stream | Sequence[Document]) -> Stream:
    """A stream as it is, or documents packed as bytes."""
    return ByteStream(text) if isinstance(text, Sequence) else text

"""Text to tokens: a byte-level BPE, trained here or given, or bytes.

Byte-level (GPT-2's invention) means that the first 256 tokens are the bytes, and every other token
is a string of bytes: no text is unknown, every text comes back as it was, and each token stands for
a known number of bytes, which is what turns a loss per token into bits per byte. A tokenizer that
is not byte-level is refused.

Training merges the most frequent pair of neighbouring tokens until there are as many tokens as
wanted (Sennrich et al., arXiv 1508.07909), inside words only, of the training half only.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nvfp4_jax.data.extra import library
from nvfp4_jax.training.errors import UsageError
from nvfp4_jax.training.stream import SEPARATOR, VOCABULARY

OPENS_DOCUMENTS = "<|endoftext|>"  # by this name most byte-level tokenizers have one
DEFAULT_VOCABULARY = 2**15
LEAST_VOCABULARY = VOCABULARY + 1  # the bytes and the separator


@dataclass(frozen=True)
class Tokenizer:
    """A way to cut text.

    Attributes:
      vocabulary: every token is below it.
      separator: a token that no text is cut into.
      token_bytes: (vocabulary,) how many bytes of text each token stands for.
      encode: texts, UTF-8, to their tokens.
      exact: whether tokens stand for the text's very bytes, nothing normalized.
      json: of the `tokenizers` library; None where tokens are bytes.
    """

    vocabulary: int
    separator: int
    token_bytes: np.ndarray
    encode: Callable[[Sequence[bytes]], list[np.ndarray]]
    exact: bool = True
    json: str | None = None


def byte_tokenizer() -> Tokenizer:
    """A byte is a token, and 255, which no UTF-8 text contains, the separator."""
    table = np.ones(VOCABULARY, np.uint16)
    table[SEPARATOR] = 0
    return Tokenizer(
        VOCABULARY, SEPARATOR, table, lambda texts: [np.frombuffer(t, np.uint8) for t in texts]
    )


def train_tokenizer(texts: Iterable[bytes], vocabulary: int) -> Tokenizer:
    """A byte-level BPE of `vocabulary` tokens, the separator and the 256 bytes included."""
    tokenizers = library("tokenizers")
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[OPENS_DOCUMENTS],
        initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator((text.decode() for text in texts), trainer)
    return _from_library(bpe, OPENS_DOCUMENTS)


def read_tokenizer(path: Path, separator: str | None) -> Tokenizer:
    """The tokenizer of a tokenizer.json.

    Raises:
      UsageError: the file cannot be read, is no byte-level tokenizer, or has no such separator.
    """
    try:
        loaded = library("tokenizers").Tokenizer.from_str(path.read_text())
    except OSError as error:
        raise UsageError(f"--tokenizer {path}: cannot read it: {error.strerror}") from None
    except UsageError:
        raise
    except Exception as error:  # the library raises nothing narrower
        raise UsageError(f"--tokenizer {path}: no tokenizer.json: {error}") from None
    if "ByteLevel" not in json.dumps(json.loads(loaded.to_str())["decoder"]):
        raise UsageError(
            f"--tokenizer {path}: not byte-level, so that its tokens stand for no certain number "
            "of bytes; give a byte-level BPE, or leave it out to train one"
        )
    name = OPENS_DOCUMENTS if separator is None else separator
    if loaded.token_to_id(name) is None:
        raise UsageError(
            f"--tokenizer {path}: it has no token {name!r} to open documents; name one of its own "
            f"by --separator{_special(loaded)}"
        )
    return _from_library(loaded, name)


def _from_library(tokenizer: Any, separator: str) -> Tokenizer:
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True  # text that spells a special token is text

    def encode(texts: Sequence[bytes]) -> list[np.ndarray]:
        strings = [text.decode() for text in texts]
        found = tokenizer.encode_batch_fast(strings, add_special_tokens=False)
        return [np.array(one.ids, np.uint32) for one in found]

    names = tokenizer.get_vocab(with_added_tokens=True)
    vocabulary = max(names.values()) + 1
    return Tokenizer(
        vocabulary=vocabulary,
        separator=tokenizer.token_to_id(separator),
        token_bytes=_token_bytes(tokenizer, names, vocabulary),
        encode=encode,
        exact=tokenizer.normalizer is None,
        json=tokenizer.to_str(pretty=True),
    )


def _token_bytes(tokenizer: Any, names: dict[str, int], vocabulary: int) -> np.ndarray:
    """Byte-level tokens are spelt with one character a byte; added ones as they are."""
    table = np.zeros(vocabulary, np.uint16)
    for name, number in names.items():
        table[number] = len(name)
    for number, added in tokenizer.get_added_tokens_decoder().items():
        table[number] = 0 if added.special else len(added.content.encode())
    return table


def _special(tokenizer: Any) -> str:
    names = [t.content for t in tokenizer.get_added_tokens_decoder().values() if t.special]
    return f", such as {', '.join(names[:5])}" if names else ""

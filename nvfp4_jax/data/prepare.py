"""`nvfp4 data prepare`: sources to a folder of token shards, whole or not at all.

    read every source, drop duplicates   ->  a spool on disk           (spool)
    train a BPE on the training half     ->  tokenizer.json            (tokenize)
    cut every document, in order         ->  train-*.npy, held_out-*   (shard_writer)
    say what is there                    ->  manifest.json, last       (training.manifest)

The same sources and options make the same files to the byte, on any machine.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
from rich.console import Console

from nvfp4_jax.data.building import building, check_free
from nvfp4_jax.data.find import find_sources
from nvfp4_jax.data.options import Prepare
from nvfp4_jax.data.report import part, say
from nvfp4_jax.data.shard_writer import ShardWriter, store_array, store_text
from nvfp4_jax.data.source import Reader
from nvfp4_jax.data.spool import Spool, gather
from nvfp4_jax.data.tokenize import (
    DEFAULT_VOCABULARY,
    LEAST_VOCABULARY,
    Tokenizer,
    byte_tokenizer,
    read_tokenizer,
    train_tokenizer,
)
from nvfp4_jax.training.corpus import Document
from nvfp4_jax.training.errors import UsageError
from nvfp4_jax.training.manifest import FORMAT, MANIFEST, Half, Manifest, Stored
from nvfp4_jax.training.prepared import TOKEN_BYTES, PreparedCorpus, load_prepared

HELD_OUT = "held_out.txt"
TRAIN_ON = 2**28  # bytes of text that a BPE is trained on; more change little and take long
AT_ONCE = 2**22  # bytes of text that are cut at once; a token takes 100 times its size meanwhile


def prepare(options: Prepare, console: Console | None = None) -> PreparedCorpus:
    """Make the folder `options.out`.

    Raises:
      UsageError: an option that cannot be honoured, a source that cannot be read, a record that is
        none; nothing was made.
      StorageError: the disk is full or fails; nothing was kept.
    """
    console = console or Console()
    _check(options)
    check_free(options.out)
    given = _given_tokenizer(options)
    with contextlib.ExitStack() as stack:
        readers = find_sources(options, stack, console)
        folder = stack.enter_context(building(options.out))
        spool = _gather(readers, folder, console)
        tokenizer = given or _train(spool, options.vocabulary or DEFAULT_VOCABULARY, console)
        manifest = _write(spool, tokenizer, folder, options, console)
        spool.path.unlink()
        store_text(folder / MANIFEST, msgspec.json.format(msgspec.json.encode(manifest)).decode())
    corpus = load_prepared(options.out)
    say(console, corpus.describe())
    say(console, f"nvfp4 train --data {options.out} trains on it; vocabulary {corpus.vocabulary:,}")
    return corpus


def _check(options: Prepare) -> None:
    if options.shard_tokens < 1:
        raise UsageError(
            f"--shard-tokens {options.shard_tokens}: give a whole number of at least 1"
        )
    if options.vocabulary is not None and options.tokenizer is not None:
        raise UsageError("--vocabulary has no effect with --tokenizer, which has its own")
    if options.vocabulary is not None and options.vocabulary < LEAST_VOCABULARY:
        raise UsageError(
            f"--vocabulary {options.vocabulary}: give at least {LEAST_VOCABULARY}, for the bytes "
            "and a separator"
        )
    if options.separator is not None and options.tokenizer in (None, "bytes"):
        raise UsageError("--separator has no effect without the --tokenizer of a file")


def _given_tokenizer(options: Prepare) -> Tokenizer | None:
    if options.tokenizer is None:
        return None
    if options.tokenizer == "bytes":
        return byte_tokenizer()
    return read_tokenizer(Path(options.tokenizer), options.separator)


def _gather(readers: list[Reader], folder: Path, console: Console) -> Spool:
    documents = size = 0
    with part(console, "reading", len(readers)) as show:

        def progress(sources: int, document: Document) -> None:
            nonlocal documents, size
            documents += 1
            size += len(document.data)
            show(sources, f"{documents:,} documents, {size / 1e6:,.1f} MB of text")

        return gather(readers, folder / "spool", progress)


def _train(spool: Spool, vocabulary: int, console: Console) -> Tokenizer:
    with part(console, f"training a BPE of {vocabulary:,} tokens", None):
        tokenizer = train_tokenizer(_sample(spool), vocabulary)
    if tokenizer.vocabulary < vocabulary:
        raise UsageError(
            f"--vocabulary {vocabulary}: the text has pairs for {tokenizer.vocabulary:,} tokens "
            "only; give a smaller one, or more text"
        )
    return tokenizer


def _sample(spool: Spool) -> Iterator[bytes]:
    """The training half, or every n-th document of it, for at most `TRAIN_ON` bytes."""
    every = -(-spool.bytes // TRAIN_ON)
    for number, document in enumerate(spool.read()):
        if number % every == 0 and not spool.held_out(document):
            yield document.data


def _write(
    spool: Spool, tokenizer: Tokenizer, folder: Path, options: Prepare, console: Console
) -> Manifest:
    dtype = np.dtype(np.uint16 if tokenizer.vocabulary <= 2**16 else np.uint32)
    train, held_out = (
        ShardWriter(folder, name, options.shard_tokens, dtype) for name in ("train", "held_out")
    )
    paths, done, tokens = [], 0, 0
    with part(console, "cutting into tokens", spool.bytes) as show:
        for document, cut in _cut(spool, tokenizer):
            size = int(tokenizer.token_bytes[cut].sum(dtype=np.int64))
            half = held_out if spool.held_out(document) else train
            half.add(np.concatenate([[tokenizer.separator], cut]), size)
            if half is held_out:
                paths.append(document.path)
            done, tokens = done + len(document.data), tokens + cut.size + 1
            show(done, f"{tokens:,} tokens")
        halves = train.finish(), held_out.finish()
    files = _files(folder, tokenizer, paths)
    return _manifest(spool, tokenizer, options, dtype, halves, files)


def _cut(spool: Spool, tokenizer: Tokenizer) -> Iterator[tuple[Document, np.ndarray]]:
    """Each document and its tokens, some of them at a time, so that all cores have work."""
    for documents in _batches(spool.read()):
        cuts = tokenizer.encode([document.data for document in documents])
        for document, cut in zip(documents, cuts, strict=True):
            _check_cut(document, cut, tokenizer)
            yield document, cut


def _batches(documents: Iterator[Document]) -> Iterator[list[Document]]:
    batch, size = [], 0
    for document in documents:
        batch.append(document)
        size += len(document.data)
        if size >= AT_ONCE:
            yield batch
            batch, size = [], 0
    yield batch


def _check_cut(document: Document, cut: np.ndarray, tokenizer: Tokenizer) -> None:
    """A tokenizer that loses text, or puts separators into it, would be found out too late."""
    if (cut == tokenizer.separator).any():
        raise UsageError(f"--tokenizer: it cuts a separator out of the text of {document.path}")
    size = int(tokenizer.token_bytes[cut].sum(dtype=np.int64))
    if tokenizer.exact and size != len(document.data):
        raise UsageError(
            f"--tokenizer: it makes {size:,} bytes of the {len(document.data):,} of "
            f"{document.path}; give one that knows every byte"
        )


def _files(folder: Path, tokenizer: Tokenizer, held_out: list[str]) -> tuple[Stored, ...]:
    files = [
        store_array(folder / TOKEN_BYTES, tokenizer.token_bytes),
        store_text(folder / HELD_OUT, "".join(f"{path}\n" for path in held_out)),
    ]
    if tokenizer.json is not None:
        files.append(store_text(folder / "tokenizer.json", tokenizer.json))
    return tuple(files)


def _manifest(
    spool: Spool,
    tokenizer: Tokenizer,
    options: Prepare,
    dtype: np.dtype,
    halves: tuple[Half, Half],
    files: tuple[Stored, ...],
) -> Manifest:
    return Manifest(
        format=FORMAT,
        name=" + ".join(Path(word).name or word for word in options.sources),
        sources=spool.sources,
        vocabulary=tokenizer.vocabulary,
        separator=tokenizer.separator,
        dtype=dtype.name,
        duplicates=spool.duplicates,
        train=halves[0],
        held_out=halves[1],
        files=files,
    )

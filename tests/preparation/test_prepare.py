"""From texts to shards and back: nothing lost, nothing twice, the same files every time."""

from __future__ import annotations

import filecmp
import json

import numpy as np
import pytest
import tokenizers

from nvfp4_jax.training.corpus import load_corpus
from nvfp4_jax.training.data import bytes_per_target, held_out_batches, training_batches

from .texts import prepared, text, write_folder, write_json_lines, write_parquet

VOCABULARY = 320


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("texts") / "texts")


@pytest.fixture(scope="module")
def bpe(folder, tmp_path_factory):
    """The folder as shards of 100 tokens of a BPE."""
    out = tmp_path_factory.mktemp("bpe") / "out"
    return out, prepared(out, folder, vocabulary=VOCABULARY, shard_tokens=100)


def documents_of(stream, tokenizer) -> list[str]:
    """The texts of a stream, decoded by the library."""
    tokens = stream.read(0, len(stream))
    assert tokens[0] == stream.separator
    parts = np.split(tokens, np.flatnonzero(tokens == stream.separator))[1:]
    return [tokenizer.decode(part[1:], skip_special_tokens=False) for part in parts]


def test_every_document_comes_back(folder, bpe):
    out, corpus = bpe
    tokenizer = tokenizers.Tokenizer.from_file(str(out / "tokenizer.json"))
    files = load_corpus(folder)
    for stream, documents in ((corpus.train, files.train), (corpus.held_out, files.held_out)):
        assert documents_of(stream, tokenizer) == [d.data.decode() for d in documents]
    assert (out / "held_out.txt").read_text().split() == [d.path for d in files.held_out]
    assert corpus.vocabulary == VOCABULARY


def test_the_manifest_counts_what_is_there(folder, bpe):
    out, corpus = bpe
    manifest = json.loads((out / "manifest.json").read_text())
    files = load_corpus(folder)
    for name, documents in (("train", files.train), ("held_out", files.held_out)):
        half = manifest[name]
        assert half["documents"] == len(documents)
        assert half["bytes"] == sum(len(d.data) for d in documents)
        shards = [np.load(out / shard["file"], mmap_mode="r") for shard in half["shards"]]
        assert [s.size for s in shards[:-1]] == [100] * (len(shards) - 1)
        assert [s.size for s in shards] == [shard["tokens"] for shard in half["shards"]]
        assert sum(s.size for s in shards) == half["tokens"]
        assert all(s.dtype == np.uint16 for s in shards)
    assert corpus.bytes_per_token > 1.5


def test_reading_crosses_the_ends_of_shards(bpe):
    out, corpus = bpe
    whole = np.concatenate([np.load(path) for path in sorted(out.glob("train-*.npy"))])
    assert len(corpus.train) == whole.size > 500
    for start, stop in (
        (0, 0),
        (0, 1),
        (99, 101),
        (100, 200),
        (50, 450),
        (whole.size - 3, whole.size),
    ):
        assert (corpus.train.read(start, stop) == whole[start:stop]).all()


def test_hosts_read_their_rows_from_shards(bpe):
    options = {"batch": 4, "length": 50, "seed": 1}
    whole, part = (training_batches(bpe[1].train, **options, rows=r) for r in (None, [3, 1]))
    for _ in range(8):
        ours, theirs = next(part), next(whole)
        assert all((ours[name] == theirs[name][[3, 1]]).all() for name in theirs)


def test_the_same_sources_make_the_same_files(folder, bpe, tmp_path):
    again = tmp_path / "again"
    prepared(again, folder, vocabulary=VOCABULARY, shard_tokens=100)
    names = {path.name for path in bpe[0].iterdir()}
    assert names == {path.name for path in again.iterdir()}
    same, *other = filecmp.cmpfiles(bpe[0], again, names, shallow=False)
    assert (set(same), other) == (names, [[], []])
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_bytes_make_the_batches_of_the_folder_itself(folder, tmp_path):
    corpus, files = prepared(tmp_path / "out", folder, tokenizer="bytes"), load_corpus(folder)
    options = {"batch": 3, "length": 16}
    pairs = zip(
        [*held_out_batches(corpus.held_out, **options, count=99)],
        [*held_out_batches(files.held_out, **options, count=99)],
        strict=True,
    )
    shards, texts = (training_batches(c.train, **options, seed=5) for c in (corpus, files))
    for ours, theirs in (*pairs, *((next(shards), next(texts)) for _ in range(20))):
        for name in ours:
            np.testing.assert_array_equal(ours[name], theirs[name])
    assert corpus.bytes_per_token == 1


def test_bits_per_byte_know_every_token(folder, bpe):
    """Over all held-out text, bytes per target are just the text's bytes over its tokens."""
    half = bpe[1].manifest.held_out
    found = bytes_per_target(bpe[1].held_out, batch=2, length=10, count=10**6)
    assert found == pytest.approx(half.bytes / (half.tokens - half.documents), rel=1e-12)
    assert half.bytes == sum(len(d.data) for d in load_corpus(folder).held_out)


def test_records_are_documents_by_file_and_number(tmp_path):
    (tmp_path / "in" / "sub").mkdir(parents=True)
    write_json_lines(tmp_path / "in" / "sub" / "a.jsonl", [text(i) for i in range(60)], "body")
    write_parquet(
        tmp_path / "in" / "b.parquet", [None, "", *(text(i) for i in range(50, 90))], "body"
    )
    corpus = prepared(tmp_path / "out", tmp_path / "in", tokenizer="bytes", field="body")
    sources = {s.name: s for s in corpus.manifest.sources}
    assert sources.keys() == {"sub/a.jsonl", "b.parquet"}
    assert (sources["b.parquet"].documents, sources["b.parquet"].left_out) == (40, 2)
    assert corpus.manifest.duplicates == 10  # 50 to 59, in both
    assert corpus.manifest.train.documents + corpus.manifest.held_out.documents == 90
    held_out = (tmp_path / "out" / "held_out.txt").read_text().splitlines()
    assert all(p.startswith(("sub/a.jsonl#", "b.parquet#")) for p in held_out)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_handful_of_documents_has_both_halves(count, tmp_path):
    source = write_folder(tmp_path / "in", count)
    corpus, files = prepared(tmp_path / "out", source, tokenizer="bytes"), load_corpus(source)
    assert corpus.held_out.documents == len(files.held_out) == 1
    assert corpus.train.documents == len(files.train)
    packed = b"".join(b"\xff" + d.data for d in files.held_out)
    assert bytes(corpus.held_out.read(0, len(corpus.held_out)).astype(np.uint8)) == packed


def test_a_given_tokenizer_cuts_as_itself(bpe, folder, tmp_path):
    path = bpe[0] / "tokenizer.json"
    corpus = prepared(tmp_path / "out", folder, tokenizer=str(path), shard_tokens=100)
    assert corpus.digests == bpe[1].digests
    assert corpus.fingerprint == bpe[1].fingerprint

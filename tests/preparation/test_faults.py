"""What is damaged, missing or malformed is named, with a remedy, and nothing is left half-made."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from nvfp4_jax.data import building
from nvfp4_jax.data.extra import library
from nvfp4_jax.data.options import Verify
from nvfp4_jax.data.verify import verify
from nvfp4_jax.training import UsageError
from nvfp4_jax.training.corpus import load_corpus
from nvfp4_jax.training.errors import StorageError

from ..training.test_faults import files_of_at_most
from .texts import prepared, text, write_folder, write_json_lines, write_parquet


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    prepared(folder / "out", write_folder(folder / "in"), tokenizer="bytes", shard_tokens=1000)
    return folder / "out"


@pytest.fixture
def copy(whole, tmp_path) -> Path:
    return shutil.copytree(whole, tmp_path / "copy")


def listing(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


def test_a_whole_folder_is_verified(copy, capsys):
    verify(Verify(folder=copy))
    assert "all as they should be" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "damage", "words"),
    [
        ("train-00001.npy", Path.unlink, r"cannot read .*train-00001.npy: No such file"),
        ("train-00001.npy", lambda p: p.write_bytes(p.read_bytes()[:-2]), r"has 2,126 bytes, in"),
        ("held_out-00000.npy", lambda p: p.write_bytes(p.read_bytes() + b"\0"), "held_out-00000"),
        ("manifest.json", Path.unlink, r"shards without a manifest.json, .* prepared or copied"),
        ("manifest.json", lambda p: p.write_bytes(p.read_bytes()[:700]), r"manifest.json is damag"),
        ("token_bytes.npy", lambda p: p.write_bytes(b"x" * p.stat().st_size), "token_bytes.npy"),
    ],
)
def test_damage_that_shows_is_found_at_the_start(copy, name, damage, words):
    damage(copy / name)
    with pytest.raises(UsageError, match=f"{words}.*; copy the folder anew, or prepare it again"):
        load_corpus(copy)


def test_a_manifest_of_another_kind_is_named(copy):
    manifest = json.loads((copy / "manifest.json").read_text())
    for change, words in (
        ({"format": "nvfp4_jax tokens 9"}, "of the format 'nvfp4_jax tokens 9', not"),
        ({"extra": 1}, r"damaged: Object contains unknown field `extra`"),
        ({"train": manifest["train"] | {"tokens": 5}}, "shards of train do not add up to 5 tokens"),
    ):
        (copy / "manifest.json").write_text(json.dumps(manifest | change))
        with pytest.raises(UsageError, match=words):
            load_corpus(copy)


def test_a_flipped_bit_is_found_by_verify(copy):
    path = copy / "train-00001.npy"
    data = bytearray(path.read_bytes())
    data[-10] ^= 1
    path.write_bytes(data)
    load_corpus(copy)  # sizes are right
    with pytest.raises(UsageError, match=r"train-00001.npy is damaged: its sha256 is .*; copy the"):
        verify(Verify(folder=copy))


def test_verify_wants_a_prepared_folder(tmp_path):
    with pytest.raises(UsageError, match="no prepared folder; nvfp4 data prepare makes one"):
        verify(Verify(folder=tmp_path))


def test_damage_that_comes_later_is_found_when_read(copy):
    corpus = load_corpus(copy)
    path = copy / "train-00001.npy"
    shard = np.load(path)
    np.save(path, np.where(np.arange(1000) == 700, 999, shard).astype(np.uint16))
    assert corpus.train.read(1000, 1700).size == 700
    with pytest.raises(UsageError, match=r"train-00001.npy is damaged: it holds the token 999"):
        corpus.train.read(1690, 1710)
    path.write_bytes(path.read_bytes()[:-400])
    with pytest.raises(UsageError, match=r"train-00001.npy has become shorter"):
        corpus.train.read(500, 2500)
    path.unlink()
    with pytest.raises(StorageError, match=r"cannot read .*train-00001.npy: No such file"):
        corpus.train.read(500, 2500)
    assert corpus.train.read(0, 1000).size == 1000  # the others are as they were


def test_a_text_folder_may_have_a_manifest_of_its_own(tmp_path):
    write_folder(tmp_path, 4)
    (tmp_path / "manifest.json").write_text('{"format": "of something else"}')
    assert len(load_corpus(tmp_path).train) + len(load_corpus(tmp_path).held_out) == 5


LINES = {
    '{"text": "a"}\n{"text": b}\n': r"in.jsonl, line 2: not JSON: .*; mend or remove the line",
    '{"text": "a"}\n\n{"body": "b", "id": 3}\n': r"line 3: no field 'text'; it has body, id",
    '{"text": "a"}\n["b"]\n': r"line 2: expected an object",
    '{"text": 4}\n': r"line 1: field 'text' holds int, not text; choose by --field",
    '{"text": ""}\n\n': r"no text in in.jsonl",
}


@pytest.mark.parametrize("content", LINES)
def test_records_that_are_none_are_named(content, tmp_path):
    (tmp_path / "in.jsonl").write_text(content)
    before = listing(tmp_path)
    with pytest.raises(UsageError, match=LINES[content]):
        prepared(tmp_path / "out", tmp_path / "in.jsonl", tokenizer="bytes")
    assert listing(tmp_path) == before


def test_names_that_are_no_text_are_shown(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "caf\udce9.txt").write_text("text")
    with pytest.raises(UsageError, match=r"the name of 'caf.udce9.txt' is not UTF-8; rename"):
        prepared(tmp_path / "out", tmp_path / "in", tokenizer="bytes")


def test_columns_that_are_none_are_named(tmp_path):
    path = write_parquet(tmp_path / "in.parquet", ["a", "b"])
    cases = {
        "body": r"in.parquet: no column 'body'; it has id, text; choose by --field",
        "id": r"in.parquet: column 'id' holds int, not text",
    }
    for field, words in cases.items():
        with pytest.raises(UsageError, match=words):
            prepared(tmp_path / "out", path, tokenizer="bytes", field=field)
    path.write_bytes(b"PAR1 no more")
    with pytest.raises(UsageError, match=r"cannot read .*in.parquet: "):
        prepared(tmp_path / "out", path, tokenizer="bytes")
    assert not (tmp_path / "out").exists()


def test_options_that_cannot_be_honoured(tmp_path):
    source = write_folder(tmp_path / "in", 4)
    (tmp_path / "word.json").write_text(
        '{"version": "1.0", "model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}}'
    )
    (tmp_path / "none.json").write_text("{}")
    cases = [
        ({"vocabulary": 256}, "--vocabulary 256: give at least 257"),
        ({"vocabulary": 60_000}, "--vocabulary 60000: the text has pairs for .* tokens only"),
        ({"vocabulary": 300, "tokenizer": "bytes"}, "--vocabulary has no effect with --tokenizer"),
        ({"separator": "<s>"}, "--separator has no effect without the --tokenizer of a file"),
        ({"shard_tokens": 0}, "--shard-tokens 0: give a whole number of at least 1"),
        ({"tokenizer": "nowhere.json"}, "--tokenizer nowhere.json: cannot read it: No such file"),
        ({"tokenizer": str(tmp_path / "none.json")}, "none.json: no tokenizer.json: "),
        ({"tokenizer": str(tmp_path / "word.json")}, "word.json: not byte-level"),
    ]
    before = listing(tmp_path)
    for options, words in cases:
        with pytest.raises(UsageError, match=words):
            prepared(tmp_path / "out", source, **options)
    for sources, words in (
        ((), "name a source: a folder, a .jsonl or .parquet file, or debian-docs"),
        ((tmp_path / "missing",), "missing: no such folder or file; give a folder"),
        ((tmp_path / "empty",), "the folder holds no files"),
    ):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(UsageError, match=words):
            prepared(tmp_path / "out", *sources, tokenizer="bytes")
    assert listing(tmp_path) == sorted([*before, tmp_path / "empty"])


def test_the_separator_of_a_given_tokenizer_is_one_of_its_tokens(whole, tmp_path):
    source = write_folder(tmp_path / "in", 9)
    prepared(tmp_path / "first", source, vocabulary=300)
    given = str(tmp_path / "first" / "tokenizer.json")
    with pytest.raises(UsageError, match=r"no token '<s>' to open .*, such as <\|endoftext\|>"):
        prepared(tmp_path / "out", source, tokenizer=given, separator="<s>")
    with pytest.raises(UsageError, match="cuts a separator out of the text of "):
        prepared(tmp_path / "out", source, tokenizer=given, separator=":")


def test_what_stands_in_the_way_is_left_alone(copy, tmp_path):
    source = write_folder(tmp_path / "in", 4)
    (tmp_path / "file").write_text("a file")
    (tmp_path / "half" / ".out.preparing").mkdir(parents=True)
    cases = {
        copy: "a prepared corpus is there; remove it or give another --out",
        source: "it holds other files; give a folder that is new or empty",
        tmp_path / "file": "it is a file; give a folder",
        tmp_path / "file" / "out": "cannot make the folder: Not a directory",
        tmp_path / "half" / "out": r"another process prepares it now, or was killed; .*\(rm -r ",
    }
    before = listing(tmp_path)
    for out, words in cases.items():
        with pytest.raises(UsageError, match=words):
            prepared(out, source, tokenizer="bytes")
    assert listing(tmp_path) == before


@pytest.mark.parametrize("share", [0.5, 1.5], ids=["spool", "shard"])
def test_a_full_disk_is_named_and_nothing_is_left(share, tmp_path):
    """It is full while sources are read, or when two bytes are written for each of their text."""
    texts = [text(i) for i in range(30)]
    source = write_json_lines(tmp_path / "in.jsonl", texts)
    before = listing(tmp_path)
    with (
        files_of_at_most(int(share * sum(len(one.encode()) for one in texts))),
        pytest.raises(StorageError, match=r"--out .*out: cannot write: File too large; nothing"),
    ):
        prepared(tmp_path / "out", source, tokenizer="bytes")
    assert listing(tmp_path) == before


def test_ctrl_c_leaves_nothing(tmp_path):
    build = building.building(tmp_path / "out")
    (build.__enter__() / "train-00000.npy").write_text("half")
    assert not build.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)  # and it goes on up
    assert listing(tmp_path) == []


def test_a_library_that_is_not_installed_names_the_extra():
    with pytest.raises(UsageError, match=r"needs no_such_library .*; install nvfp4_jax\[data\]"):
        library("no_such_library")

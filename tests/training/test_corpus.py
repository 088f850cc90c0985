"""The text: who is held out, what is refused, and what a change is called."""

from __future__ import annotations

import time

import pytest

from nvfp4_jax.training import UsageError
from nvfp4_jax.training.corpus import Corpus, describe_change, load_corpus


@pytest.fixture(scope="module")
def library() -> Corpus:
    return load_corpus()


def test_the_standard_library_is_there_and_quick(library):
    began = time.process_time()
    again = load_corpus()
    assert time.process_time() - began < 2
    assert again == library
    assert sum(len(d.data) for d in library.train) > 5_000_000
    paths = {d.path for d in (*library.train, *library.held_out)}
    assert {"argparse.py", "json/decoder.py"} <= paths
    assert not any("test" in p.split("/")[:-1] or "site-packages" in p for p in paths)


def test_held_out_files_are_a_twentieth_and_apart(library):
    train, held_out = ({d.path for d in half} for half in (library.train, library.held_out))
    assert not train & held_out
    share = len(held_out) / (len(train) + len(held_out))
    assert 0.02 < share < 0.09  # 560 files, each held out with p = 1/20: 5% +- 4 standard errors


def write(folder, **files):
    for name, content in files.items():
        path = folder / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def test_the_choice_of_held_out_files_survives_other_files(tmp_path):
    names = [f"file{i}" for i in range(60)]
    few = load_corpus(write(tmp_path / "a", **{n: f"text {n}" for n in names[:40]}))
    many = load_corpus(write(tmp_path / "b", **{n: f"other {n}" for n in names}))
    old = {f"{n}.txt" for n in names[:40]}
    assert {d.path for d in few.held_out} == {d.path for d in many.held_out} & old


def test_two_files_are_one_each_and_one_file_is_cut(tmp_path):
    two = load_corpus(write(tmp_path / "two", a="first", b="second"))
    assert [len(two.train), len(two.held_out)] == [1, 1]
    text = "0123456789" * 20
    one = load_corpus(write(tmp_path / "one", a=text))
    assert one.train[0].data + one.held_out[0].data == text.encode()
    assert len(one.held_out[0].data) == len(text) // 20


def test_what_is_not_text_is_left_out_and_said(tmp_path):
    write(tmp_path, a="text", b="more text", c=b"\x00\x01", d=b"caf\xe9", e="  \n")
    (tmp_path / ".hidden").write_text("not seen")
    corpus = load_corpus(tmp_path)
    assert corpus.skipped == ("c.txt", "d.txt", "e.txt")
    assert {d.path for d in (*corpus.train, *corpus.held_out)} == {"a.txt", "b.txt"}


def test_refusals_name_the_folder_and_the_remedy(tmp_path):
    file = write(tmp_path / "text", a="text") / "a.txt"
    binary = write(tmp_path / "binary", a=b"\0")
    (tmp_path / "empty").mkdir()
    cases = {
        tmp_path / "missing": "does not exist; give a folder",
        file: "is a file; give a folder",
        tmp_path / "empty": "holds no files; put UTF-8 text",
        binary: r"no file in it holds UTF-8 text \(found a.txt\)",
    }
    for folder, words in cases.items():
        with pytest.raises(UsageError, match=f"--data {folder}: .*{words}"):
            load_corpus(folder)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    write(tmp_path, a="text", b="text")
    (tmp_path / "dangling.txt").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UsageError, match=r"cannot read .*dangling.txt: No such file"):
        load_corpus(tmp_path)


def test_a_change_is_described(tmp_path):
    before = load_corpus(write(tmp_path, a="text", b="text", c="text"))
    (tmp_path / "a.txt").unlink()
    after = load_corpus(write(tmp_path, b="other", d="new"))
    assert before.fingerprint != after.fingerprint
    words = describe_change(before.digests, after.digests)
    assert words == "1 added (d.txt); 1 removed (a.txt); 1 changed (b.txt)"
    assert describe_change(before.digests, before.digests) == "nothing"

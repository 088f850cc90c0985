"""Packing: nothing lost, nothing predicted twice or across a boundary, any moment restorable."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from nvfp4_jax.training.corpus import Document
from nvfp4_jax.training.data import Windows, held_out_batches, training_batches
from nvfp4_jax.training.stream import SEPARATOR, ByteStream

LENGTH = 8
TEXTS = [b"a first document", b"x", b"", b"the third, a longer one: " * 3]
DOCUMENTS = [Document(str(i), text) for i, text in enumerate(TEXTS)]


@pytest.fixture(scope="module")
def windows() -> list:
    source = Windows(ByteStream(DOCUMENTS), LENGTH)
    return [source[i] for i in range(len(source))]


def test_every_byte_is_a_target_once_and_nothing_else_is(windows):
    targets = [w["targets"][w["mask"]] for w in windows]
    assert bytes(np.concatenate(targets).astype(np.uint8)) == b"".join(TEXTS)


def test_windows_lie_end_to_end_and_targets_are_the_next_tokens(windows):
    for here, following in itertools.pairwise(windows):
        assert (here["tokens"][1:] == here["targets"][:-1]).all()
        assert here["targets"][-1] == following["tokens"][0]


def test_a_segment_is_a_document(windows):
    """A segment starts at its window's start or at a separator, and nowhere else."""
    for window in windows:
        starts = np.diff(window["segment_ids"], prepend=-1) > 0
        opened = window["tokens"] == SEPARATOR
        assert (starts[1:] == opened[1:]).all()
        assert starts[0]
        crossing = window["targets"] == SEPARATOR
        assert (window["mask"] == ~crossing).all()


def test_padding_is_masked_and_no_text_contains_the_separator():
    (only,) = list(Windows(ByteStream([Document("a", b"hi")]), 6))
    assert only["tokens"].tolist() == [SEPARATOR, ord("h"), ord("i")] + [SEPARATOR] * 3
    assert only["mask"].tolist() == [True, True, False, False, False, False]
    with pytest.raises(UnicodeDecodeError):
        bytes([SEPARATOR]).decode()


def batches(seed: int, batch: int = 3):
    return training_batches(DOCUMENTS, batch=batch, length=LENGTH, seed=seed)


def tokens(iterator, count: int) -> list[list]:
    return [next(iterator)["tokens"].tolist() for _ in range(count)]


def test_batches_are_the_same_every_time_and_differ_by_seed_and_epoch():
    ten = tokens(batches(0), 10)
    assert ten == tokens(batches(0), 10)
    assert ten != tokens(batches(1), 10)
    size = len(Windows(ByteStream(DOCUMENTS), LENGTH))
    first, second = np.concatenate(tokens(batches(0, batch=1), 2 * size)).reshape(2, size, LENGTH)
    assert (first != second).any()
    assert (np.sort(first, axis=0) == np.sort(second, axis=0)).all()


def test_neighbouring_seeds_share_no_epoch():
    """grain shuffles epoch e by seed + e; unhashed, seed 1 would be seed 0 an epoch later."""
    size = len(Windows(ByteStream(DOCUMENTS), LENGTH))
    assert tokens(batches(0, batch=1), 2 * size)[size:] != tokens(batches(1, batch=1), size)


@pytest.mark.parametrize("at", [0, 1, 7])
def test_the_iterator_resumes_from_its_state(at):
    iterator = batches(0)
    tokens(iterator, at)
    state = iterator.get_state()
    expected = tokens(iterator, 5)
    fresh = batches(0)
    fresh.set_state(state)
    assert tokens(fresh, 5) == expected


def test_held_out_batches_cover_everything_once_when_asked():
    batches = held_out_batches(DOCUMENTS, batch=4, length=LENGTH, count=100)
    assert all(b["tokens"].shape == (4, LENGTH) for b in batches)
    targets = np.concatenate([b["targets"][b["mask"]] for b in batches])
    assert sorted(targets) == sorted(b"".join(TEXTS))
    fewer = held_out_batches(DOCUMENTS, batch=4, length=LENGTH, count=1)
    assert (fewer[0]["tokens"] == batches[0]["tokens"]).all()


def rows_of(batch, rows):
    return {name: array[rows].tolist() for name, array in batch.items()}


def test_hosts_read_their_rows_of_the_same_batches():
    """Whatever the split, and from a position that one reader of all rows has left."""
    whole = training_batches(DOCUMENTS, batch=4, length=LENGTH, seed=3)
    next(whole)
    state, expected = whole.get_state(), [next(whole) for _ in range(9)]
    for rows in ([0, 2], [1, 3], [2], np.array([3, 0])):
        part = training_batches(DOCUMENTS, batch=4, length=LENGTH, seed=3, rows=rows)
        part.set_state(state)
        for batch in expected:
            here = next(part)
            assert here["tokens"].shape == (len(rows), LENGTH)
            assert rows_of(here, slice(None)) == rows_of(batch, list(rows))
        assert part.get_state() == whole.get_state()


def test_hosts_read_their_rows_of_the_held_out_text():
    options = {"batch": 4, "length": LENGTH, "count": 3}
    whole = held_out_batches(DOCUMENTS, **options)
    part = held_out_batches(DOCUMENTS, **options, rows=[1, 2])
    assert [rows_of(b, slice(None)) for b in part] == [rows_of(b, [1, 2]) for b in whole]


def test_rows_outside_the_batch_are_refused():
    with pytest.raises(ValueError, match=r"rows \[0, 4\] are not all rows of a batch of 4"):
        training_batches(DOCUMENTS, batch=4, length=LENGTH, seed=0, rows=[0, 4])

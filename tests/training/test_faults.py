"""What a disk or folder refuses is one named error, and what was whole before it still is.

A limit on the size of files stands for a full disk: the kernel itself refuses, in the middle of a
line if it comes to that, and any user may set it.
"""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from nvfp4_jax.training.config import TrainConfig
from nvfp4_jax.training.errors import Diverged, Interrupted, StorageError, UsageError, outcome
from nvfp4_jax.training.files import replacing, write_atomically
from nvfp4_jax.training.metrics import Lines, read_lines


@contextlib.contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """While open, no file of this process can grow beyond `size` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("room", [0, 1, 20], ids=lambda room: f"{room} bytes left")
def test_a_line_is_logged_whole_or_not_at_all(tmp_path, room):
    path = tmp_path / "metrics.jsonl"
    with Lines(path, through=0) as log:
        log.write(step=1, loss=2.5)
        size = path.stat().st_size
        with (
            files_of_at_most(size + room),
            pytest.raises(StorageError, match=f"cannot write {path}: .*"),
        ):
            log.write(step=2, loss=2.25)
        assert path.stat().st_size == size
        log.write(step=2, loss=2.25)  # there is room again
    assert [line["step"] for line in read_lines(path)] == [1, 2]


@pytest.mark.parametrize("damaged", [b"{}", b'{"step": 1, "lo', b"\0\0\0", b"[1]", b"\xff"])
def test_a_damaged_line_in_a_log_is_named_and_nothing_is_cut(tmp_path, damaged):
    path = tmp_path / "metrics.jsonl"
    content = b'{"step": 1}\n' + damaged + b'\n{"step": 3}\n'
    path.write_bytes(content)
    with pytest.raises(UsageError, match=f"{path}, line 2 is damaged"):
        Lines(path, through=3)
    assert path.read_bytes() == content


def test_a_file_stays_what_it_was(tmp_path):
    path = tmp_path / "recipe.toml"
    write_atomically(path, "before")
    with files_of_at_most(10), pytest.raises(StorageError, match=f"{path}: File too large"):
        write_atomically(path, "after" * 100)
    assert path.read_text() == "before"
    assert [p.name for p in tmp_path.iterdir()] == ["recipe.toml"]


def test_parameters_that_do_not_fit_are_told_in_the_same_words(tmp_path):
    path = tmp_path / "parameters.safetensors"
    with (
        files_of_at_most(1000),
        pytest.raises(StorageError, match=f"{path}: File too large"),
        replacing(path) as temporary,
    ):
        save_file({"kernel": np.zeros(1000, np.float32)}, temporary)
    assert list(tmp_path.iterdir()) == []


def test_a_read_only_workdir_is_refused_before_anything_begins(tmp_path, monkeypatch):
    """As root, whom no mode of a folder stops, `access` alone tells of a read-only file system."""
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    with pytest.raises(UsageError, match=rf"--workdir .*run: {tmp_path} cannot be written to"):
        TrainConfig(workdir=tmp_path / "run").check()


def test_failures_that_call_for_different_acts_have_different_statuses():
    """The scripts of experiments/launch start a run again after the first alone."""
    errors = StorageError("full"), UsageError("mistaken"), Diverged("bad"), Interrupted()
    statuses = [status for _, status in filter(None, map(outcome, errors))]
    assert statuses == [1, 2, 3, 130]


@pytest.mark.parametrize("text", ["", "0", "-5", "often", "1.5", "0h", "h", "infh", "nanh"])
def test_an_interval_that_is_none_is_refused(tmp_path, text):
    with pytest.raises(UsageError, match=r"--keep-every .*\(1000\) or of hours \(6h\)"):
        TrainConfig(workdir=tmp_path, keep_every=text).check()


def test_an_interval_on_which_no_checkpoint_falls_is_refused(tmp_path):
    with pytest.raises(UsageError, match="--keep-every 70 is no multiple of --save-every 50"):
        TrainConfig(workdir=tmp_path, keep_every="70", save_every=50).check()
    for fine in ("100", "6h", "0.5h"):
        TrainConfig(workdir=tmp_path, keep_every=fine, save_every=50).check()

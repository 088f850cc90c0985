"""One run at a time in a workdir, and no folder that is closed for good."""

from __future__ import annotations

import errno
import fcntl
import io
import subprocess
import sys

import pytest
from rich.console import Console

from nvfp4_jax.training import UsageError, train
from nvfp4_jax.training.occupied import LOCK, occupied

from . import micro

HOLD = """
import fcntl, sys
file = open(sys.argv[1], "ab")
fcntl.flock(file, fcntl.LOCK_EX)
print(flush=True)
sys.stdin.read()
"""


def silent(line: str) -> None:
    raise AssertionError(f"nothing was to be said: {line}")


@pytest.fixture
def another(tmp_path):
    """Another process that is in the folder."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / LOCK)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        process.kill()


def test_nothing_is_left_of_it(tmp_path):
    for _ in range(2):
        with occupied(tmp_path, silent), pytest.raises(UsageError, match="another run uses it"):
            occupied(tmp_path, silent).__enter__()
        assert list(tmp_path.iterdir()) == []


def test_a_run_beside_another_is_refused_and_changes_nothing(inputs, tmp_path, another):
    config = micro.config(inputs, tmp_path)
    with pytest.raises(UsageError, match=f"--workdir {tmp_path}: another run uses it now; wait"):
        train(config, Console(file=io.StringIO()))
    assert list(tmp_path.iterdir()) == [tmp_path / LOCK]


def test_a_run_that_was_killed_is_in_nobodys_way(tmp_path, another):
    another.kill()
    another.wait()
    assert (tmp_path / LOCK).exists()
    with occupied(tmp_path, silent):
        pass


def test_a_lock_that_a_lost_host_holds_can_be_removed(tmp_path, another):
    (tmp_path / LOCK).unlink()
    with occupied(tmp_path, silent):
        pass


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_where_there_are_no_locks_it_is_said_and_the_run_goes_on(tmp_path, monkeypatch, number):
    def refuse(*_):
        raise OSError(number, "as the system says")

    monkeypatch.setattr(fcntl, "flock", refuse)
    said: list[str] = []
    with occupied(tmp_path, said.append):
        pass
    (line,) = said
    assert line.startswith(f"cannot lock {tmp_path / LOCK} (as the system says): see that no other")


def test_a_lock_that_cannot_be_made_stops_no_run(tmp_path):
    (tmp_path / LOCK).mkdir()
    said: list[str] = []
    with occupied(tmp_path, said.append):
        pass
    assert len(said) == 1

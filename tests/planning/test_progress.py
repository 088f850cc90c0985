"""What `nvfp4 plan` shows while it works, and what it says before."""

from __future__ import annotations

import io
import re
import threading
import time

import pytest
from rich.console import Console

from nvfp4_jax import compile_for
from nvfp4_jax.planning.options import Plan
from nvfp4_jax.planning.progress import progress
from nvfp4_jax.planning.run import foresee
from nvfp4_jax.training import UsageError


def test_lines_are_repeated_while_nothing_new_is_said():
    written = io.StringIO()
    with progress(Console(file=written, soft_wrap=True), seconds=0.02) as say:
        say("compiling [a]")
        until = time.monotonic() + 30
        while written.getvalue().count("\n") < 3 and time.monotonic() < until:
            time.sleep(0.01)
    assert "progress" not in {thread.name for thread in threading.enumerate()}
    first, *repeated = written.getvalue().splitlines()
    assert first == "compiling [a]"
    assert len(repeated) >= 2
    assert all(re.fullmatch(r"compiling \[a\], for \d+ s", line) for line in repeated)


def test_a_terminal_has_a_clock():
    written = io.StringIO()
    with progress(Console(file=written, force_terminal=True, width=80)) as say:
        say("compiling")
        say("reading")
    assert "compiling" in written.getvalue()
    assert "reading" in written.getvalue()
    assert "0:00:00" in written.getvalue()


def test_what_is_missing_is_said_before_anything_is_begun(monkeypatch):
    compile_for._devices.cache_clear()  # of tests before, in this process
    monkeypatch.setattr(compile_for, "_is_installed", lambda name: False)
    written = io.StringIO()
    with pytest.raises(UsageError, match=r"install nvfp4_jax\[compile\]"):
        foresee(Plan(model="tiny", gpus=4), Console(file=written))
    assert written.getvalue() == ""

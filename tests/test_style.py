"""ruff and pyright have nothing to say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    "command",
    [("ruff", "check", "."), ("ruff", "format", "--check", "."), ("pyright",)],
    ids=" ".join,
)
def test_nothing_to_say(command):
    program, *arguments = command
    done = subprocess.run(
        [sys.executable, "-m", program, *arguments], cwd=CHECKOUT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr

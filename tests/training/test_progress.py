"""Progress: a bar where there is a terminal, few plain lines where there is none."""

from __future__ import annotations

import io
import math

import pytest
from rich.console import Console

from nvfp4_jax.training.progress import Reporter


def shown(terminal: bool, steps: int = 200, done: int = 0) -> str:
    """What a run of steps of 0.5 s and 1000 tokens prints; the first takes 60 s to compile."""
    file = io.StringIO()
    console = Console(file=file, force_terminal=terminal, color_system=None, width=120)
    with Reporter(console, "nvfp4", steps, done, tokens=1000) as report:
        for step in range(done + 1, steps + 1):
            first = step == done + 1
            report.step(step, math.log(2) * 3, 60.0 if first else 0.5, compiled=first)
        report.say("[said] aloud")
    return file.getvalue()


@pytest.mark.parametrize("done", [0, 90])
def test_plain_lines_are_few_and_leave_compilation_out(done):
    lines = shown(terminal=False, done=done).splitlines()
    assert len(lines) <= 22
    assert lines[0] == f"step {done + 1}/200: loss 2.079, 3.000 bits/byte, - tokens/s"
    assert "step 100/200: loss 2.079, 3.000 bits/byte, 2,000 tokens/s, 0:50 left" in lines
    assert lines[-2] == "step 200/200: loss 2.079, 3.000 bits/byte, 2,000 tokens/s"
    assert lines[-1] == "[said] aloud"


def test_a_terminal_gets_a_bar():
    output = shown(terminal=True)
    assert "200/200" in output
    assert "3.000 bits/byte" in output
    assert "2,000 tokens/s" in output
    assert "step 100/200" not in output


def test_hours_are_hours():
    file = io.StringIO()
    with Reporter(Console(file=file), "nvfp4", 10_000, 0, tokens=1) as report:
        report.step(1, 1.0, 9.0, compiled=True)
        for step in range(2, 501):
            report.step(step, 1.0, 2.0, compiled=False)
    assert "5:16:40 left" in file.getvalue()  # 9500 steps of 2 s

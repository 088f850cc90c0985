"""Where a key of a recipe stands."""

from __future__ import annotations

import pytest

from nvfp4_jax.recipe.lines import Lines

TEXT = '''\
# a comment with [brackets] and = signs
[precision.low.fprop]          # line 2
input = { format = "nvfp4" }

"weight" = { format = "a # no comment, [no] header" }
precision."a.b" . x = 1
note = """
[rule]
match = 3
"""
[[rule]]                       # 11
match = "x"
blocks = { index = [
    0,
    1,
] }
precision = "low"
[[rule]]                       # 18
  regex = '[a-z]=.*'
[rule.blocks]
last = 2
[[schedule]]
from = 0.5
'''

LOW = ("precision", "low", "fprop")


@pytest.mark.parametrize(
    ("path", "line"),
    [
        (("precision",), 2),
        (("precision", "low"), 2),
        (LOW, 2),
        ((*LOW, "input"), 3),
        ((*LOW, "input", "format"), 3),  # inside an inline table: the statement that holds it
        ((*LOW, "weight"), 5),
        ((*LOW, "precision", "a.b", "x"), 6),
        ((*LOW, "note"), 7),
        (("rule", 0), 11),
        (("rule", 0, "match"), 12),
        (("rule", 0, "blocks", "index"), 13),
        (("rule", 0, "precision"), 17),
        (("rule", 1), 18),
        (("rule", 1, "regex"), 19),
        (("rule", 1, "blocks"), 20),
        (("rule", 1, "blocks", "last"), 21),
        (("rule", 1, "kind"), 18),  # not there: its table
        (("schedule", 0, "from"), 23),
        (("evaluation",), None),
    ],
)
def test_line_of(path, line):
    assert Lines(TEXT).of(path) == line
    assert Lines(TEXT.replace("\n", "\r\n")).of(path) == line

"""Malformed recipes, and what their one message must say.

A table, so that the command line's tests can write the same files and look at exit codes. Each
case names the line and the place that the message must hold (where there are any), and words of
the remedy: what to write instead.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

HEAD = """\
[precision.low.fprop]
input  = { format = "nvfp4" }
weight = { format = "nvfp4", granularity = "16x16" }
"""
REST = """\
[[rule]]
match = "**"
precision = "low"
"""


@dataclass(frozen=True)
class Malformed:
    """A recipe file that must be refused.

    Attributes:
      name: a word for the case, and its file name.
      content: the file's text or bytes; None: there is no file; "/": it is a directory.
      place: what the message calls the place; empty where the whole file is at fault.
      line: the line it names; None where there is none.
      remedy: words that must be in the message: the nearest right spelling, or what to do.
    """

    name: str
    content: str | bytes | None
    place: str
    line: int | None
    remedy: str

    def write(self, folder: Path) -> Path:
        """Put the file into `folder` (nothing, for the missing one) and give its path."""
        path = folder / f"{self.name}.toml"
        if self.content == "/":
            path.mkdir()
        elif isinstance(self.content, bytes):
            path.write_bytes(self.content)
        elif self.content is not None:
            path.write_text(self.content, encoding="utf-8")
        return path


def operand(text: str) -> str:
    """A recipe whose Fprop input, on line 2, is `text`."""
    return f"[precision.low.fprop]\ninput = {text}\n{REST}"


def rule(text: str) -> str:
    """A recipe whose second rule, headed on line 7, says `text`."""
    return f'{HEAD}[[rule]]\nmatch = "head"\nprecision = "bf16"\n[[rule]]\n{text}\n{REST}'


def schedule(*entries: str) -> str:
    """A recipe with schedule entries; the first one is headed on line 7."""
    return HEAD + REST + "".join(f"[[schedule]]\n{entry}\n" for entry in entries)


INPUT = "precision.low.fprop.input"
CASES = (
    # The file itself.
    Malformed("missing-file", None, "", None, "no such file; shipped recipes are"),
    Malformed("directory", "/", "", None, "is a directory; name the .toml file"),
    Malformed("empty", "", "", None, "is empty; give it at least one [[rule]]"),
    Malformed("only-comments", "# nothing\n\n", "", None, "is empty; give it at least one"),
    Malformed("latin-1", HEAD.encode() + b"# caf\xe9\n", "", 4, "save the file as UTF-8"),
    Malformed("syntax", HEAD + "[[rule\n", "", 4, "mend the line"),
    Malformed("unclosed", HEAD + "x = [1,\n", "", 4, "mend the line"),
    Malformed("duplicate-key", rule('match = "*"\nmatch = "**"'), "", 9, "twice"),
    Malformed("duplicate-table", HEAD + HEAD + REST, "", 4, "given twice"),
    Malformed("duplicate-option", operand('{ rht = 16, rht = 0 }'), "", 2, "twice"),
    # The tables of the file.
    Malformed("unknown-table", HEAD + REST + "[[rules]]\n", "rules", 7, "did you mean 'rule'?"),
    Malformed("rule-is-a-table", '[rule]\nmatch = "**"\n', "rule", 1, "[[rule]]"),
    Malformed("precision-is-a-word", 'precision = "nvfp4"\n' + REST, "precision", 1,
              "[precision.NAME.GEMM]"),
    Malformed("no-rule", HEAD, "rule", None, 'end with [[rule]] match = "**"'),
    # Precisions.
    Malformed("redefined-bf16", "[precision.bf16]\n" + REST, "precision.bf16", 1, "another name"),
    Malformed("empty-precision", "[precision.low]\n" + REST, "precision.low", 1, "built-in 'bf16'"),
    Malformed("unknown-gemm", "[precision.low.fporp]\n" + REST, "precision.low.fporp", 1,
              "did you mean 'fprop'?"),
    Malformed("empty-gemm", "[precision.low.wgrad]\n" + REST, "precision.low.wgrad", 1,
              "give it input and grad"),
    Malformed("foreign-operand", '[precision.low.dgrad]\ninput = "bf16"\n' + REST,
              "precision.low.dgrad.input", 2, "its operands are grad and weight"),
    Malformed("unknown-operand", '[precision.low.dgrad]\nlhs = "bf16"\n' + REST,
              "precision.low.dgrad.lhs", 2, "allowed: 'input', 'weight', 'grad'"),
    Malformed("one-rotation", '[precision.low.wgrad]\ninput = { format = "nvfp4", rht = 16 }\n'
              'grad = { format = "nvfp4" }\n' + REST, "precision.low.wgrad", 1, "the same rht"),
    Malformed("operand-is-a-word", operand('"nvfp4"'), INPUT, 2, '{ format = "nvfp4" }'),
    Malformed("operand-is-a-number", operand("4"), INPUT, 2, "expected a string or a table"),
    Malformed("no-format", operand("{ rht = 16 }"), INPUT, 2, "write format ="),
    Malformed("unknown-format", operand('{ format = "nvpf4" }'), INPUT + ".format", 2,
              "did you mean 'nvfp4'?"),
    Malformed("bf16-as-format", operand('{ format = "bf16" }'), INPUT + ".format", 2,
              'write input = "bf16"'),
    Malformed("unknown-option", operand('{ format = "nvfp4", grain = 16 }'), INPUT + ".grain", 2,
              "did you mean 'granularity'?"),
    Malformed("impossible-granularity", operand('{ format = "mxfp4", granularity = "16x16" }'),
              INPUT + ".granularity", 2, "'1x32'"),
    Malformed("unknown-rounding", operand('{ format = "nvfp4", rounding = "stocastic" }'),
              INPUT + ".rounding", 2, "did you mean 'stochastic'?"),
    Malformed("impossible-rht", operand('{ format = "nvfp4", rht = 12 }'), INPUT + ".rht", 2,
              "16, 32"),
    Malformed("rht-is-true", operand('{ format = "nvfp4", rht = true }'), INPUT + ".rht", 2,
              "expected an integer, got true or false"),
    Malformed("rht-is-text", operand('{ format = "nvfp4", rht = "16" }'), INPUT + ".rht", 2,
              "expected an integer, got a string"),
    Malformed("idle-bits", operand('{ format = "nvfp4", bits = 8 }'), INPUT + ".bits", 2,
              'rounding = "stochastic"'),
    Malformed("idle-sign", operand('{ format = "nvfp4", sign = "random" }'), INPUT + ".sign", 2,
              "leave it out or add one"),
    Malformed("fixed-sign-of-32", operand('{ format = "nvfp4", rht = 32, sign = "fixed" }'),
              INPUT + ".sign", 2, "use sign = 'random'"),
    Malformed("empty-word", operand('{ format = "nvfp4", scale = "" }'), INPUT + ".scale", 2,
              "leave it out"),
    Malformed("packed-without-wgrad", "[precision.low]\nresiduals = \"packed\"\n" + HEAD + REST,
              "precision.low.residuals", 2, "quantize it, or leave residuals out"),
    Malformed("unknown-residuals", "[precision.low]\nresiduals = \"fp4\"\n" + HEAD + REST,
              "precision.low.residuals", 2, "write one of bf16, packed"),
    # Rules.
    Malformed("empty-rule", rule('precision = "low"'), "rule 2", 7, 'match = "**" is all'),
    Malformed("rule-without-precision", rule('match = "*"'), "rule 2", 7, "write precision ="),
    Malformed("unknown-precision", rule('match = "*"\nprecision = "lo"'), "rule 2.precision", 9,
              "did you mean 'low'?"),
    Malformed("match-and-regex", rule('match = "*"\nregex = ".*"\nprecision = "low"'), "rule 2", 7,
              "keep one of them"),
    Malformed("empty-match", rule('match = ""\nprecision = "low"'), "rule 2.match", 8,
              "leave it out or fill it in"),
    Malformed("bad-glob", rule('match = "blocks_[0-3]/**"\nprecision = "low"'), "rule 2.match", 8,
              "use regex"),
    Malformed("three-stars", rule('match = "a/***"\nprecision = "low"'), "rule 2.match", 8,
              "write * (inside one name) or **"),
    Malformed("glob-ends-in-slash", rule('match = "a/"\nprecision = "low"'), "rule 2.match", 8,
              "no slash at either end"),
    Malformed("nnx-glob", rule('match = "blocks/7/*"\nprecision = "low"'), "rule 2.match", 8,
              "write blocks_7 for blocks/7"),
    Malformed("bad-regex", rule('regex = "(mlp"\nprecision = "low"'), "rule 2.regex", 8, "mend it"),
    Malformed("unknown-kind", rule('kind = "mamba.outproj"\nprecision = "low"'), "rule 2.kind", 8,
              "did you mean 'mamba.out_proj'?"),
    Malformed("kinds-as-array", rule('kind = ["mlp.up"]\nprecision = "low"'), "rule 2.kind", 8,
              "expected a string, got an array"),
    Malformed("optional-as-text", rule('match = "*"\noptional = "yes"\nprecision = "low"'),
              "rule 2.optional", 9, "expected true or false"),
    Malformed("empty-blocks", rule('blocks = {}\nprecision = "low"'), "rule 2.blocks", 8,
              "give first, last, last_fraction or index"),
    Malformed("unknown-blocks", rule('blocks = { lats = 2 }\nprecision = "low"'),
              "rule 2.blocks.lats", 8, "did you mean 'last'?"),
    Malformed("blocks-as-number", rule('blocks = 8\nprecision = "low"'), "rule 2.blocks", 8,
              "expected a table, got an integer; write blocks = { ... }"),
    Malformed("zero-blocks", rule('blocks = { first = 0 }\nprecision = "low"'),
              "rule 2.blocks.first", 8, "give 1 or more"),
    Malformed("percent", rule('blocks = { last_fraction = 15 }\nprecision = "low"'),
              "rule 2.blocks.last_fraction", 8, "0.15 is the last 15%"),
    Malformed("negative-index", rule('blocks = { index = [-1] }\nprecision = "low"'),
              "rule 2.blocks.index", 8, "use last = 1"),
    Malformed("index-as-text", rule('blocks = { index = [0, "1"] }\nprecision = "low"'),
              "rule 2.blocks.index", 8, "expected an integer, got a string"),
    # Schedule and evaluation.
    Malformed("schedule-out-of-order",
              schedule('from = 0.8\nprecision = "bf16"', 'from = 0.5\nprecision = "low"'),
              "schedule entry 2.from", 11, "write the entries in order"),
    Malformed("unknown-gemm-in-schedule",
              schedule('from = 0.8\ngemms = ["fprob"]\nprecision = "bf16"'),
              "schedule entry 1.gemms", 9, "did you mean 'fprop'?"),
    Malformed("no-gemms", schedule('from = 0.8\ngemms = []\nprecision = "bf16"'),
              "schedule entry 1.gemms", 9, "leave it out for all three"),
    Malformed("unknown-precision-in-schedule", schedule('from = 0.8\nprecision = "fp16"'),
              "schedule entry 1.precision", 9, "did you mean 'bf16'?"),
    Malformed("fraction-beyond-the-run", schedule('from = 82.0\nprecision = "bf16"'),
              "schedule entry 1.from", 8, "write an integer for a step"),
    Malformed("from-the-end-on", schedule('from = 1.0\nprecision = "bf16"'),
              "schedule entry 1.from", 8, "or 1 for the step"),
    Malformed("negative-step", schedule('from = -5\nprecision = "bf16"'),
              "schedule entry 1.from", 8, "steps count from 0"),
    Malformed("no-start", schedule('precision = "bf16"'), "schedule entry 1", 7, "write from ="),
    Malformed("ends-before-it-starts", schedule('from = 9\nuntil = 9\nprecision = "bf16"'),
              "schedule entry 1.until", 9, "give a later one"),
    Malformed("date", schedule('from = 2026-01-01\nprecision = "bf16"'),
              "schedule entry 1.from", 8, "expected an integer or a number"),
    Malformed("unknown-evaluation", HEAD + REST + '[evaluation]\nprecision = "fp32"\n',
              "evaluation.precision", 8, "allowed: 'bf16', 'low', or write [precision.fp32.GEMM]"),
    Malformed("evaluation-of-gemms", HEAD + REST + '[evaluation]\ngemms = ["fprop"]\n',
              "evaluation.gemms", 8, "allowed: 'precision'"),
)  # fmt: skip

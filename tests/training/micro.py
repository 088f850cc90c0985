"""The smallest run that has everything: a text, a model, a recipe that switches, a config.

One linear layer draws random bits (stochastic rounding) and rotates, and changes precision in the
middle of the run; the others stay bf16, since every quantized product takes a second to compile.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from nvfp4_jax.training import TrainConfig

MODEL: dict[str, Any] = {
    "pattern": "M-",
    "hidden": 16,
    "vocabulary": 256,
    "ffn": 32,
    "mamba_heads": 2,
    "mamba_head_dim": 8,
    "state": 8,
    "groups": 1,
    "chunk": 8,
}

RECIPE = """\
[precision.low.fprop]
input  = { format = "nvfp4" }
weight = { format = "nvfp4", granularity = "16x16" }
[precision.low.wgrad]
input  = { format = "nvfp4", rht = 16 }
grad   = { format = "nvfp4", rht = 16, rounding = "stochastic" }
[[rule]]
match = "blocks_1/mlp/up"
precision = "low"
[[rule]]
match = "**"
precision = "bf16"
[[schedule]]
from = 0.5
gemms = ["fprop"]
precision = "bf16"
[evaluation]
precision = "bf16"
"""

STEPS = 12


def write_inputs(folder: Path) -> Path:
    """Put text, model and recipe into `folder`; gives it back."""
    (folder / "text").mkdir(parents=True)
    for i in range(12):
        words = [f"word{i * k % 17} of document {i}\n" for k in range(20 + 5 * i)]
        (folder / "text" / f"{i:02}.txt").write_text("".join(words))
    (folder / "model.json").write_text(json.dumps(MODEL))
    (folder / "recipe.toml").write_text(RECIPE)
    return folder


def options(folder: Path, workdir: Path, **changes: Any) -> dict[str, Any]:
    """What describes the micro run, by the names of `TrainConfig`."""
    return {
        "workdir": workdir,
        "model": str(folder / "model.json"),
        "recipe": str(folder / "recipe.toml"),
        "data": folder / "text",
        "steps": STEPS,
        "batch": 4,
        "length": 32,
        "save_every": 2,
        "eval_every": 4,
        "eval_batches": 2,
        "compilation_cache": folder / "compilation-cache",
    } | changes


def config(folder: Path, workdir: Path, **changes: Any) -> TrainConfig:
    """The micro run's config."""
    return TrainConfig(**options(folder, workdir, **changes))


def command(folder: Path, workdir: Path, **changes: Any) -> list[str]:
    """The micro run as a command line, without the program's name."""
    words = ["train"]
    for name, value in options(folder, workdir, **changes).items():
        words += ["--" + name.replace("_", "-"), str(value)]
    return words

"""Names and layouts of parameters: ours against Hugging Face's.

| ours                              | theirs                                   | layout            |
|-----------------------------------|------------------------------------------|-------------------|
| embedding/weight                  | PREFIX.embeddings.weight                 | same              |
| blocks/I/MIXER_norm/weight        | PREFIX.layers.I.norm.weight              | same              |
| blocks/I/mamba/in_proj/kernel     | PREFIX.layers.I.mixer.in_proj.weight     | transposed        |
| blocks/I/mamba/conv/weight        | PREFIX.layers.I.mixer.conv1d.weight      | (w, C): (C, 1, w) |
| blocks/I/mlp/up/kernel            | PREFIX.layers.I.mixer.up_proj.weight     | transposed        |
| blocks/I/attention/q/kernel       | PREFIX.layers.I.mixer.q_proj.weight      | transposed        |
| final_norm/weight                 | PREFIX.norm_f.weight                     | same              |
| head/kernel                       | lm_head.weight                           | transposed        |

PREFIX is `backbone` in the released files, `model` in transformers 5. PyTorch keeps a linear's
weight as (out, in), we as (in, out).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

PREFIXES = ("backbone", "model")

_MIXER = {
    "in_proj/kernel": "in_proj.weight",
    "out_proj/kernel": "out_proj.weight",
    "conv/weight": "conv1d.weight",
    "conv/bias": "conv1d.bias",
    "norm/weight": "norm.weight",
    "A_log": "A_log",
    "D": "D",
    "dt_bias": "dt_bias",
    "up/kernel": "up_proj.weight",
    "down/kernel": "down_proj.weight",
    "q/kernel": "q_proj.weight",
    "k/kernel": "k_proj.weight",
    "v/kernel": "v_proj.weight",
    "o/kernel": "o_proj.weight",
}


class Theirs(NamedTuple):
    """A parameter's name in a file, and how its axes lie there."""

    name: str
    layout: str  # "same", "transposed" or "conv"

    def shape(self, ours: tuple[int, ...]) -> tuple[int, ...]:
        """The shape in the file of a parameter with our shape."""
        if self.layout == "conv":
            width, channels = ours
            return (channels, 1, width)
        return ours[::-1] if self.layout == "transposed" else ours

    def encode(self, ours: np.ndarray) -> np.ndarray:
        """Our array as it lies in a file."""
        return (
            np.ascontiguousarray(ours.T).reshape(self.shape(ours.shape)) if self._turned else ours
        )

    def decode(self, theirs: np.ndarray) -> np.ndarray:
        """An array from a file as ours."""
        if self.layout == "conv":
            theirs = theirs[:, 0]
        return theirs.T if self._turned else theirs

    @property
    def _turned(self) -> bool:
        return self.layout != "same"


def theirs(path: Sequence[object], prefix: str) -> Theirs:
    """Hugging Face's name and layout of the parameter at our path, such as ("blocks", 3, ...)."""
    top, *rest = map(str, path)
    if top == "head":
        return Theirs("lm_head.weight", "transposed")
    if top == "embedding":
        return Theirs(f"{prefix}.embeddings.weight", "same")
    if top == "final_norm":
        return Theirs(f"{prefix}.norm_f.weight", "same")
    index, mixer, *inner = rest
    layer = f"{prefix}.layers.{index}"
    if mixer.endswith("_norm"):
        return Theirs(f"{layer}.norm.weight", "same")
    ours = "/".join(inner)
    layout = "conv" if ours == "conv/weight" else "transposed" if "kernel" in inner else "same"
    return Theirs(f"{layer}.mixer.{_MIXER[ours]}", layout)

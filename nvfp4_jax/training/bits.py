"""Bits per byte: a loss that does not depend on the tokens it was measured in.

    bits per byte = nats per token / ln 2 / bytes per token

Two tokenizers cut one text into different numbers of tokens, and so their losses per token do not
compare; the bits for the whole text do. Where tokens are bytes there is one byte a token.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np


def bits_per_byte[Loss: (float, np.ndarray)](loss: Loss, bytes_per_token: float) -> Loss:
    """Losses in nats a token, of tokens that stand for so many bytes on average."""
    return loss / math.log(2) / bytes_per_token


def read_bytes_per_token(workdir: Path) -> float:
    """Of the text that the run in `workdir` trains on, as its config.json says."""
    corpus = json.loads((workdir / "config.json").read_text())["corpus"]
    return corpus.get("bytes_per_token", 1.0)  # runs of version 0.1 had bytes alone

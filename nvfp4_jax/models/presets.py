"""Models by name: the published hybrids, and small ones that earn their keep.

| name            | blocks                         | parameters | source                      |
|-----------------|--------------------------------|------------|-----------------------------|
| tiny            | 9: 4 Mamba, 4 MLP, 1 attention | 1.1 M      | for a CPU; bytes as tokens  |
| 150m            | 20: 9, 9, 2                    | 153 M      | one GPU, minutes            |
| 1b              | 62: 28, 28, 6                  | 1.08 B     | the 12B's depth, narrow     |
| nemotron-h-8b   | 52: 24, 24, 4                  | 8.10 B     | arXiv 2504.03624            |
| nano-9b-v2      | 56: 27, 25, 4                  | 8.89 B     | arXiv 2508.14444            |
| nano-12b-v2     | 62: 28, 28, 6                  | 12.31 B    | arXiv 2509.25149            |
| transformer-1b2 | 20 of attention and MLP        | 1.29 B     | arXiv 2509.25149, ablations |

The tiny model's in_proj is 648 wide, on purpose no multiple of 16: ragged shapes are the rule
that is forgotten.
"""

from __future__ import annotations

import difflib
from dataclasses import replace

from nvfp4_jax.models.config import HybridConfig

_TINY = HybridConfig(
    pattern="M-M*-M-M-",
    hidden=128,
    vocabulary=256,
    ffn=512,
    attention_heads=4,
    kv_heads=2,
    head_dim=32,
    mamba_heads=8,
    mamba_head_dim=32,
    state=32,
    groups=2,
    chunk=32,
)

_150M = HybridConfig(
    pattern="M-M-M*-M-M-M*-M-M-M-",
    hidden=768,
    vocabulary=32_768,
    ffn=3072,
    attention_heads=12,
    kv_heads=4,
    head_dim=64,
    mamba_heads=32,
    mamba_head_dim=64,
    state=128,
    groups=8,
)

_NANO_12B = HybridConfig(
    pattern="M-M-M-M*-" * 6 + "M-M-M-M-",
    hidden=5120,
    vocabulary=131_072,
    ffn=20_480,
    attention_heads=40,
    kv_heads=8,
    head_dim=128,
    mamba_heads=128,
    mamba_head_dim=80,
    state=128,
    groups=8,
)

_TRANSFORMER = HybridConfig(
    pattern="*-" * 20,
    mixers_per_block=2,
    hidden=2048,
    vocabulary=131_072,
    ffn=6144,
    attention_heads=16,
    kv_heads=8,
    head_dim=128,
    positions="rope",
)

PRESETS: dict[str, HybridConfig] = {
    "tiny": _TINY,
    "150m": _150M,
    "1b": replace(
        _NANO_12B,
        hidden=1280,
        ffn=5120,
        attention_heads=10,
        kv_heads=2,
        mamba_heads=32,
    ),
    "nemotron-h-8b": replace(
        _NANO_12B,
        pattern="M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M-",
        hidden=4096,
        ffn=21_504,
        attention_heads=32,
        mamba_head_dim=64,
    ),
    "nano-9b-v2": replace(
        _NANO_12B,
        pattern="M-M-M-MM-M-M-M*-M-M-M*-M-M-M-M*-M-M-M-M*-M-MM-M-M-M-M-M-",
        hidden=4480,
        ffn=15_680,
    ),
    "nano-12b-v2": _NANO_12B,
    "transformer-1b2": _TRANSFORMER,
}


def preset(name: str) -> HybridConfig:
    """The configuration called `name`; change fields with `dataclasses.replace`.

    Raises:
      ValueError: no preset has this name; the message offers the nearest and lists all.
    """
    if name in PRESETS:
        return PRESETS[name]
    near = difflib.get_close_matches(name, PRESETS, n=1)
    guess = f"did you mean {near[0]!r}? " if near else ""
    raise ValueError(f"no model is called {name!r}: {guess}There are {', '.join(PRESETS)}")

"""Hugging Face's `config.json` of a Nemotron-H model, to `HybridConfig` and back.

Two spellings are in use: the released models write the pattern as a string of letters
(`hybrid_override_pattern`), transformers 5 as a list of words (`layers_block_type`). What the
operations of this package cannot honour (biases, other activations, tied embeddings, experts)
raises and names the key; keys that say nothing about the arithmetic are not read.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from nvfp4_jax.models.config import HybridConfig

_WORDS = {
    "linear_attention": "M",
    "mamba": "M",
    "mlp": "-",
    "full_attention": "*",
    "attention": "*",
    "moe": "E",
}

# HybridConfig's field: the keys that may hold it, the first of which is written.
_KEYS = {
    "hidden": ("hidden_size",),
    "vocabulary": ("vocab_size",),
    "ffn": ("intermediate_size",),
    "attention_heads": ("num_attention_heads",),
    "kv_heads": ("num_key_value_heads",),
    "head_dim": ("head_dim", "attention_head_dim"),
    "mamba_heads": ("mamba_num_heads",),
    "mamba_head_dim": ("mamba_head_dim",),
    "state": ("ssm_state_size",),
    "groups": ("n_groups",),
    "conv_width": ("conv_kernel",),
    "chunk": ("chunk_size",),
    "norm_eps": ("layer_norm_epsilon", "rms_norm_eps", "norm_eps"),
}

# The only value that the operations here compute; what a file leaves out has it.
_FIXED = {
    "tie_word_embeddings": False,
    "use_bias": False,
    "attention_bias": False,
    "mlp_bias": False,
    "mamba_proj_bias": False,
    "use_conv_bias": True,
    "mlp_hidden_act": "relu2",
    "mamba_hidden_act": "silu",
    "sliding_window": None,
}


def read(path: Path, dt_limit: tuple[float, float]) -> HybridConfig:
    """The shape told by a config.json.

    `dt_limit` is the caller's, because the file's is no guide: the released model and Megatron do
    not clamp dt, transformers 5 clamps it at `time_step_min`, and all of them write the same
    `time_step_limit`.

    Raises:
      ValueError: a key is missing, contradicts another, or asks for what is not implemented.
    """
    values = json.loads(path.read_text())
    for key, wanted in _FIXED.items():
        if values.get(key, wanted) != wanted:
            raise ValueError(f"{path}: {key} = {values[key]!r}; only {wanted!r} is implemented")
    fields = {field: _field(path, values, keys) for field, keys in _KEYS.items()}
    try:
        return HybridConfig(pattern=_pattern(path, values), dt_limit=dt_limit, **fields)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _field(path: Path, values: dict[str, Any], keys: tuple[str, ...]) -> Any:
    found = {key: values[key] for key in keys if values.get(key) is not None}
    if not found:
        raise ValueError(f"{path}: the key {' or '.join(keys)} is missing")
    if len(set(found.values())) > 1:
        raise ValueError(f"{path}: the keys contradict each other: {found}")
    return next(iter(found.values()))


def _pattern(path: Path, values: dict[str, Any]) -> str:
    letters = values.get("hybrid_override_pattern")
    if "layers_block_type" not in values:
        if letters is None:
            raise ValueError(f"{path}: hybrid_override_pattern or layers_block_type is missing")
        return letters
    words = values["layers_block_type"]
    unknown = sorted(set(words) - set(_WORDS))
    if unknown:
        raise ValueError(f"{path}: layers_block_type: unknown {unknown}; known: {sorted(_WORDS)}")
    spelled = "".join(_WORDS[word] for word in words)
    if letters not in (None, spelled):
        raise ValueError(f"{path}: {letters!r} and layers_block_type {spelled!r} contradict")
    return spelled


def write(config: HybridConfig, path: Path) -> None:
    """Write a config.json in the released models' spelling, with transformers 5's beside it.

    Raises:
      ValueError: the model has an option that a Nemotron-H file has no word for.
    """
    for field, wanted in (("mlp", "relu_squared"), ("positions", "none"), ("mixers_per_block", 1)):
        if getattr(config, field) != wanted:
            value = getattr(config, field)
            raise ValueError(f"{field} = {value!r}: Nemotron-H files know {wanted!r} only")
    words = {letter: word for word, letter in reversed(_WORDS.items())}
    low, high = config.dt_limit
    values = {
        "model_type": "nemotron_h",
        "architectures": ["NemotronHForCausalLM"],
        "hybrid_override_pattern": config.pattern,
        "layers_block_type": [words[letter] for letter in config.pattern],
        "num_hidden_layers": config.num_blocks,
        **{keys[0]: getattr(config, field) for field, keys in _KEYS.items()},
        **_FIXED,
        "initializer_range": config.init_sigma,
        "time_step_limit": [low, {"__float__": "Infinity"} if high == math.inf else high],
    }
    path.write_text(json.dumps(values, indent=2) + "\n")

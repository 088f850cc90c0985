"""Configurations: what is refused, and the sizes of the published models."""

from __future__ import annotations

from dataclasses import replace

import pytest

from nvfp4_jax import models
from tests.models.small import CONFIG

BAD = [
    ({"pattern": ""}, "pattern"),
    ({"pattern": "M-X"}, "use the letters"),
    ({"pattern": "M-E"}, "mixture of experts"),
    ({"pattern": "M-*", "mixers_per_block": 2}, "mixers_per_block = 2"),
    ({"pattern": "--", "mixers_per_block": 2}, "same mixer twice"),
    ({"mixers_per_block": 0}, "mixers_per_block"),
    ({"hidden": 0}, "hidden = 0"),
    ({"hidden": 16.0}, "hidden = 16.0"),
    ({"vocabulary": True}, "vocabulary = True"),
    ({"ffn": 0}, "ffn = 0"),
    ({"kv_heads": 3}, "attention_heads = 4 is not a multiple of kv_heads = 3"),
    ({"groups": 3}, "mamba_heads = 4 is not a multiple of groups = 3"),
    ({"state": 0}, "state = 0"),
    ({"chunk": 0}, "chunk = 0"),
    ({"conv_width": 0}, "conv_width = 0"),
    ({"mlp": "gelu"}, "mlp = 'gelu'"),
    ({"positions": "alibi"}, "positions = 'alibi'"),
    ({"positions": "rope", "head_dim": 5}, "head_dim = 5"),
    ({"rope_theta": 0.0}, "rope_theta"),
    ({"norm_eps": 0.0}, "norm_eps"),
    ({"init_sigma": float("inf")}, "init_sigma"),
    ({"dt_limit": (0.1, 0.1)}, "dt_limit"),
    ({"dt_limit": (-1.0, 0.1)}, "dt_limit"),
    ({"dt_limit": (0.1,)}, "dt_limit"),
]


@pytest.mark.parametrize(("changes", "message"), BAD)
def test_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **changes)


def test_sizes_of_absent_mixers_may_stay_away():
    config = models.HybridConfig(pattern="-", hidden=8, vocabulary=3, ffn=8)
    assert config.num_blocks == 1


def test_hashable_and_equal_by_value():
    assert len({CONFIG, replace(CONFIG), replace(CONFIG, dt_limit=[0.0, float("inf")])}) == 1


# Parameters as published (B = 10^9), and mixers in the order Mamba, MLP, attention.
PUBLISHED = {
    "nano-12b-v2": ("12.310", (28, 28, 6)),
    "nemotron-h-8b": ("8.101", (24, 24, 4)),
    "nano-9b-v2": ("8.888", (27, 25, 4)),
    "1b": ("1.077", (28, 28, 6)),
    "150m": ("0.153", (9, 9, 2)),
    "tiny": ("0.001", (4, 4, 1)),
    "transformer-1b2": ("1.292", (0, 20, 20)),
}


@pytest.mark.parametrize("name", models.PRESETS)
def test_presets_have_the_published_size(name):
    billions, mixers = PUBLISHED[name]
    config = models.preset(name)
    assert f"{models.count_parameters(config) / 1e9:.3f}" == billions
    assert tuple(config.pattern.count(letter) for letter in "M-*") == mixers


def test_widths_of_mamba():
    for name, in_proj, conv in (
        ("nano-12b-v2", 22656, 12288),
        ("nano-9b-v2", 22656, 12288),
        ("nemotron-h-8b", 18560, 10240),
        ("tiny", 648, 384),
    ):
        config = models.preset(name)
        assert (config.in_proj_features, config.conv_channels) == (in_proj, conv)


def test_number_of_blocks():
    blocks = {name: config.num_blocks for name, config in models.PRESETS.items()}
    assert blocks["transformer-1b2"] == 20
    assert (blocks["nano-12b-v2"], blocks["nemotron-h-8b"], blocks["nano-9b-v2"]) == (62, 52, 56)


def test_a_wrong_name_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'nano-12b-v2'"):
        models.preset("nano-12b")

"""A layer's kind from its path, in our models and in Flax's."""

from __future__ import annotations

import pytest

from nvfp4_jax.recipe import KINDS, kind_of


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("blocks_0/mamba/in_proj", "mamba.in_proj"),
        ("blocks_0/mamba/out_proj", "mamba.out_proj"),
        ("blocks_0/attention/q", "attention.qkv"),
        ("blocks_0/attention/v", "attention.qkv"),
        ("blocks_0/attention/o", "attention.out"),
        ("blocks_0/mlp/up", "mlp.up"),
        ("blocks_0/mlp/gate", "mlp.up"),
        ("blocks_0/mlp/down", "mlp.down"),
        ("encoder/layer_0/MultiHeadDotProductAttention_0/query", "attention.qkv"),
        ("encoder/layer_0/MultiHeadDotProductAttention_0/out", "attention.out"),
        ("encoder/encoderblock_0/MlpBlock_0/Dense_0", "mlp.up"),
        ("encoder/encoderblock_0/MlpBlock_0/Dense_1", "mlp.down"),
        ("layers_3/self_attn/o_proj", "attention.out"),
        ("layers_3/mlp/gate_proj", "mlp.up"),
        ("decoder/layers/mlp/wi_0", "mlp.up"),
        ("decoder/layers/mlp/wo", "mlp.down"),
        ("layers_0/feed_forward/down", "mlp.down"),
        ("head", None),
        ("out", None),  # no attention around it
        ("blocks_0/attention/mlp/out", None),  # the nearest name around it decides
        ("blocks_0/mamba/up", None),
        ("blocks_0/router/up", None),
    ],
)
def test_kind(path, kind):
    assert kind_of(path) == kind


def test_the_six_kinds():
    assert KINDS == (
        "mamba.in_proj", "mamba.out_proj", "attention.qkv", "attention.out", "mlp.up", "mlp.down",
    )  # fmt: skip

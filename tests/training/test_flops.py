"""Model FLOPs against numbers worked out by hand from Megatron's formula."""

from __future__ import annotations

from dataclasses import replace

import pytest

from nvfp4_jax import models
from nvfp4_jax.training.flops import peak_flops, step_flops

SMALL = models.HybridConfig(
    pattern="MM-*",
    hidden=8,
    vocabulary=100,
    ffn=32,
    attention_heads=4,
    kv_heads=2,
    head_dim=4,
    mamba_heads=4,
    mamba_head_dim=4,
    state=16,
    groups=2,
)


def test_by_hand():
    """h = 8, d = 16 = 2 h as Megatron has it; p = 2, g/n = 1/2; 6 tokens in rows of 10."""
    found = step_flops(SMALL, tokens=6, length=10)
    mamba = 2 * 8 * (2 * 16 + 2 * 2 * 16 + 4) + 7 * 16 * 16 + 2 * 16 * 8
    attention = 4 * 8 * 2 * (8 + 4 + 5)
    assert (mamba, attention) == (3648, 1088)
    assert found == {
        "attention": 18 * 1088,
        "mlp": 18 * 4 * 8 * 32,
        "mamba": 18 * 2 * 3648,
        "logits": 18 * 2 * 8 * 100,
    }


def test_a_gate_is_a_third_product():
    gated = step_flops(replace(SMALL, mlp="swiglu"), 1, 1)["mlp"]
    assert gated == 1.5 * step_flops(SMALL, 1, 1)["mlp"]


def test_the_1b_preset():
    """Six times the parameters that multiply, and some 20% for scan, scores and their like."""
    config = models.preset("1b")
    multiplying = models.count_parameters(config) - config.hidden * config.vocabulary
    ratio = sum(step_flops(config, 1, 4096).values()) / (6 * multiplying)
    assert 1.05 < ratio < 1.25


@pytest.mark.parametrize(
    ("name", "peak"), [("NVIDIA H100 80GB HBM3", 989.4e12), ("cpu", None), ("NVIDIA T4", None)]
)
def test_peaks(name, peak):
    assert peak_flops(name) == peak

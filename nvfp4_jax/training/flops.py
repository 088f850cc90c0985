"""Model FLOPs: the arithmetic that a training step must do, whatever the program does.

Counted as Megatron-LM counts hybrids (`num_floating_point_operations`, the hybrid branch), so that
the share of a GPU's peak that is reached (MFU) can be compared with what others report. Of one
token, forward, with h the hidden width and L the length:

    attention   4 h p (h + h g/n + L/2)     q, k, v, o and, causal, half of the scores and their
                                            sums; n query heads, g key heads, p = n head_dim / h
    mlp         4 h ffn                     6 h ffn with a gate (swiglu)
    mamba       2 h (2 d + 2 G N + H)       in_proj
                + 7 d N                     the scan, token by token
                + 2 d h                     out_proj
    logits      2 h vocabulary

A step is three times that: each product comes back as two. A product of (m, k) and (k, n) counts
2 m k n. Convolution, norms, embedding and softmax count nothing; neither does what is computed
again in the backward pass. One difference: Megatron takes d = 2 h, here d is what the model has.

Source: NVIDIA Megatron-LM, megatron/training/training.py.
"""

from __future__ import annotations

from nvfp4_jax.models import HybridConfig

PEAKS = {
    "A100": 311.9e12,
    "L40S": 362.05e12,
    "H100": 989.4e12,
    "H200": 989.4e12,
    "B200": 2250e12,
    "GB200": 2500e12,
    "GB300": 2500e12,
}
"""Dense bf16 FLOP/s of NVIDIA's data sheets (SXM, HGX, NVL72), by a word of the device's name."""


def step_flops(config: HybridConfig, tokens: int, length: int) -> dict[str, float]:
    """Model FLOPs of one training step, forward and backward, by component.

    Args:
      config: the model.
      tokens: of the whole batch.
      length: tokens of a row; documents packed into it do not count as shorter.

    Returns:
      FLOPs under `attention`, `mlp`, `mamba`, `logits`.
    """
    per_token = {
        "attention": config.pattern.count("*") * attention_flops(config, length),
        "mlp": config.pattern.count("-") * mlp_flops(config),
        "mamba": config.pattern.count("M") * mamba_flops(config),
        "logits": 2.0 * config.hidden * config.vocabulary,
    }
    return {name: 3.0 * tokens * count for name, count in per_token.items()}


def attention_flops(config: HybridConfig, length: int) -> float:
    """Of one attention layer, one token, forward."""
    queries = config.attention_heads * config.head_dim
    keys = config.kv_heads * config.head_dim
    return 4.0 * config.hidden * (queries + keys) + 2.0 * queries * length


def mlp_flops(config: HybridConfig) -> float:
    """Of one MLP, one token, forward."""
    products = 3 if config.mlp == "swiglu" else 2
    return 2.0 * products * config.hidden * config.ffn


def mamba_flops(config: HybridConfig) -> float:
    """Of one Mamba-2 layer, one token, forward."""
    linears = 2.0 * config.hidden * (config.in_proj_features + config.mamba_inner)
    return linears + 7.0 * config.mamba_inner * config.state


def peak_flops(device_kind: str) -> float | None:
    """Dense bf16 FLOP/s of a GPU by its name as JAX gives it; None for one that is not listed."""
    words = device_kind.replace("-", " ").split()
    return next((PEAKS[word] for word in words if word in PEAKS), None)

"""Trees of shapes to explain: a hybrid model's parameters as linen would nest them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

PATTERN_12B = "M-M-M-M*-" * 6 + "M-M-M-M-"


def shape(*sizes: int) -> jax.ShapeDtypeStruct:
    """An FP32 array that is not there."""
    return jax.ShapeDtypeStruct(sizes, jnp.float32)


def kernel(*sizes: int) -> dict[str, Any]:
    """The parameters of a linear layer without bias."""
    return {"kernel": shape(*sizes)}


def nano_12b() -> dict[str, Any]:
    """The 12B's parameters (model.md's numbers); conv and SSM parameters of one block only."""
    mixers = {
        "M": {"mamba": {"in_proj": kernel(5120, 22656), "out_proj": kernel(10240, 5120)}},
        "-": {"mlp": {"up": kernel(5120, 20480), "down": kernel(20480, 5120)}},
        "*": {
            "attention": {
                "q": kernel(5120, 5120),
                "k": kernel(5120, 1024),
                "v": kernel(5120, 1024),
                "o": kernel(5120, 5120),
            }
        },
    }
    blocks = {f"blocks_{i}": mixers[letter] for i, letter in enumerate(PATTERN_12B)}
    return {
        "embedding": {"embedding": shape(131072, 5120)},
        **blocks,
        "final_norm": {"scale": shape(5120)},
        "head": kernel(5120, 131072),
    }


def mlps(blocks: int) -> list[str]:
    """The layer paths of `blocks` blocks of an MLP, and a head."""
    inner = [f"blocks_{i}/mlp/{name}" for i in range(blocks) for name in ("up", "down")]
    return [*inner, "head"]

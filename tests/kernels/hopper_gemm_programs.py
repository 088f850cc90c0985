"""Compile `scaled_matmul` for an H100: optimized HLO as JSON to stderr, PTX to stdout.

A process of its own, because Mosaic GPU prints PTX only when its environment asks for it.
"""

from __future__ import annotations

import itertools
import json
import sys

import jax
import jax.numpy as jnp

from nvfp4_jax.kernels.hopper_gemm import scaled_matmul
from tests.gpu_compile import compile_for_h100

M, N, K = 8128, 8128, 192  # neither M nor N is made of whole tiles, which are the widest here
CASES = list(itertools.product((0, 1), (0, 1), ("bfloat16", "float32")))


def hlo_of(contract_a: int, contract_b: int, dtype: str) -> str:
    """The program that multiplies two arguments and scales with two more."""
    a = jax.ShapeDtypeStruct((M, K) if contract_a else (K, M), jnp.bfloat16)
    b = jax.ShapeDtypeStruct((N, K) if contract_b else (K, N), jnp.bfloat16)
    scale = jax.ShapeDtypeStruct((), jnp.float32)

    def product(a, b, scale_a, scale_b):
        return scaled_matmul(a, b, contract_a, contract_b, (scale_a, scale_b), dtype)

    return compile_for_h100(product, a, b, scale, scale)


if __name__ == "__main__":
    json.dump([hlo_of(*case) for case in CASES], sys.stderr)

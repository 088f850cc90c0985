"""An MLP that hands amaxes on, compiled for GPUs that are not here."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp

from nvfp4_jax.chained import Bound, relu_squared_mlp
from nvfp4_jax.compiled.proof import prove
from tests.gemm.precisions import PAPER

from .test_linear_compiled import calls, compiled

TOKENS, HIDDEN, FFN = 2048, 1024, 3072
UP, DOWN = "blocks_0/mlp/up", "blocks_0/mlp/down"


def mlp(x, w_up, w_down, dy, key):
    keys = jax.random.split(jax.random.wrap_key_data(key))
    bounds = Bound(PAPER, keys[0], name=UP), Bound(PAPER, keys[1], name=DOWN)

    def forward(x, w_up, w_down):
        y = relu_squared_mlp(x, w_up, w_down, *bounds)
        assert y is not None
        return y

    y, pull = jax.vjp(forward, x, w_up, w_down)
    return (y, *pull(dy))


ARGUMENTS = (
    ((TOKENS, HIDDEN), jnp.bfloat16),
    ((HIDDEN, FFN), jnp.float32),
    ((FFN, HIDDEN), jnp.float32),
    ((TOKENS, HIDDEN), jnp.bfloat16),
    ((2,), jnp.uint32),
)


def test_twelve_kernels_and_nothing_between_them():
    """Two each for x, dy and the weights; one each for r and du, and what makes them."""
    hlo = compiled("h100", mlp, *ARGUMENTS)
    assert len(calls(hlo, "triton_kernel_call")) == 12
    with_amaxes = rf"= \(bf16\[1,{TOKENS},{FFN}\]\S*, s32\[2\]\S*\) custom-call"
    assert len(re.findall(with_amaxes, hlo)) == 2
    moved = re.findall(rf"= \w+\[{TOKENS},{FFN}\]\S* (\w+)\(", hlo)
    assert not {"transpose", "copy", "multiply", "convert", "fusion"} & set(moved)


def test_the_proof_finds_every_operand_rounded():
    found = prove(compiled("h100", mlp, *ARGUMENTS), [(UP, PAPER), (DOWN, PAPER)])
    assert not found.fallbacks
    kernels = {name for gemm in found.gemms for o in gemm.operands for name in o.kernels}
    assert kernels
    assert not any("relu" in name for name in kernels)

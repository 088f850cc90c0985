"""Layers of one input, which XLA multiplies at once under the name of one of them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

import nvfp4_jax as nvfp4
from nvfp4_jax.compile_for import compile_for, mesh_of
from nvfp4_jax.compiled.hlo import parse
from nvfp4_jax.compiled.products import products
from nvfp4_jax.compiled.proof import prove
from nvfp4_jax.precision import GEMMS
from tests.compiled.linear import NUMBERS
from tests.gemm.precisions import PAPER

pytestmark = pytest.mark.usefixtures("quick_to_compile")

WIDTHS = {"blocks_3/attention/q": 128, "blocks_3/attention/k": 64, "blocks_3/attention/v": 64}
TOKENS, FEATURES = 256, 128


def attention_inputs(x, weights, grads, key):
    """y of each layer, and the gradients of x and of every weight."""
    key = jax.random.wrap_key_data(key)

    def layers(x, weights):
        dots = [nvfp4.make_dot_general(PAPER, key, name=name) for name in WIDTHS]
        return [dot(x, w, NUMBERS) for dot, w in zip(dots, weights, strict=True)]

    y, pull = jax.vjp(layers, x, weights)
    return y, pull(grads)


def test_each_of_them_is_found_and_judged():
    arguments = (
        jax.ShapeDtypeStruct((TOKENS, FEATURES), jnp.bfloat16),
        [jax.ShapeDtypeStruct((FEATURES, n), jnp.float32) for n in WIDTHS.values()],
        [jax.ShapeDtypeStruct((TOKENS, n), jnp.bfloat16) for n in WIDTHS.values()],
        jax.ShapeDtypeStruct((2,), jnp.uint32),
    )
    text = compile_for(mesh_of("a100"), attention_inputs, *arguments).as_text() or ""
    found = products(parse(text))
    assert max(len(product.layers) for product in found) > 1, "XLA merged none"
    proof = prove(text, [(name, PAPER) for name in WIDTHS])
    assert not proof.fallbacks
    assert {g.format for g in proof.gemms} == {"nvfp4 emulated"}
    whole = sum(2 * TOKENS * FEATURES * n * len(GEMMS) for n in WIDTHS.values())
    assert sum(g.flops or 0 for g in proof.gemms) == whole

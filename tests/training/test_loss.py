"""The chunked cross-entropy equals the plain one, value and gradients, however it is cut."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nvfp4_jax.training.loss import cross_entropy_sum
from nvfp4_jax.training.mesh import make_mesh, parse_mesh

TOKENS, WIDTH, VOCABULARY = (3, 7), 8, 11


def plain(weight, hidden, targets, mask):
    logits = hidden @ weight
    chosen = jax.nn.one_hot(targets, VOCABULARY) * jax.nn.log_softmax(logits)
    return -jnp.sum(jnp.where(mask, chosen.sum(-1), 0.0))


def chunked(logits_in_memory):
    def loss(weight, hidden, targets, mask):
        return cross_entropy_sum(
            lambda weight, h: h @ weight,
            weight,
            hidden,
            targets,
            mask,
            vocabulary=VOCABULARY,
            logits_in_memory=logits_in_memory,
        )

    return loss


@pytest.fixture(scope="module")
def arrays():
    draw = np.random.default_rng(0)
    return (
        jnp.asarray(draw.normal(size=(WIDTH, VOCABULARY)), jnp.float32),
        jnp.asarray(draw.normal(size=(*TOKENS, WIDTH)), jnp.float32),
        jnp.asarray(draw.integers(0, VOCABULARY, TOKENS)),
        jnp.asarray(draw.random(TOKENS) < 0.7),
    )


@pytest.mark.parametrize("tokens_a_chunk", [1, 4, 7, 20, 21, 1000])
def test_value_and_gradients(arrays, tokens_a_chunk):
    expected = jax.value_and_grad(plain, argnums=(0, 1))(*arrays)
    loss = chunked(tokens_a_chunk * VOCABULARY)
    found = jax.value_and_grad(loss, argnums=(0, 1))(*arrays)
    # FP32 sums of 21 terms in another order: a few units of the last place, 2^-24 each
    jax.tree.map(
        lambda f, e: np.testing.assert_allclose(f, e, rtol=1e-5, atol=1e-6), found, expected
    )


def test_each_device_goes_through_its_own_tokens():
    """On a mesh: the same value and gradients, FP32 for an FP32 weight under bf16 activations."""
    draw = np.random.default_rng(1)
    weight = jnp.asarray(draw.normal(size=(WIDTH, VOCABULARY)), jnp.float32)
    hidden = jnp.asarray(draw.normal(size=(4, 6, WIDTH)), jnp.bfloat16)
    targets = jnp.asarray(draw.integers(0, VOCABULARY, (4, 6)))
    mask = jnp.asarray(draw.random((4, 6)) < 0.7)

    def head(weight, hidden):
        low = weight.astype(jnp.bfloat16).astype(jnp.float32)  # whose gradient is not rounded
        return hidden.astype(jnp.float32) @ (weight + jax.lax.stop_gradient(low - weight))

    def loss(mesh):
        sizes = {"vocabulary": VOCABULARY, "logits_in_memory": 2 * VOCABULARY, "mesh": mesh}
        of_both = lambda w, h: cross_entropy_sum(head, w, h, targets, mask, **sizes)  # noqa: E731
        return jax.jit(jax.value_and_grad(of_both, (0, 1)))(weight, hidden)

    found = loss(make_mesh(parse_mesh("data=2,fsdp=2,sequence=2")))
    assert [gradient.dtype for gradient in found[1]] == [jnp.float32, jnp.bfloat16]
    jax.tree.map(
        lambda f, e: np.testing.assert_allclose(
            np.asarray(f, np.float32), np.asarray(e, np.float32), rtol=1e-5, atol=1e-6
        ),
        found,
        loss(None),
    )


def test_all_logits_are_never_held(arrays):
    """No array of the jaxpr, forward or backward, has an axis pair (all tokens, vocabulary)."""
    step = jax.make_jaxpr(jax.value_and_grad(chunked(4 * VOCABULARY), argnums=(0, 1)))(*arrays)
    logits = [shape for shape in shapes(step.jaxpr) if shape[-1:] == (VOCABULARY,)]
    assert (4, VOCABULARY) in logits
    largest = max(np.prod(shape[:-1]) for shape in logits)
    assert largest <= WIDTH  # the weight itself, (8, 11), and the chunk's (4, 11)


def shapes(jaxpr) -> list[tuple]:
    found = []
    for equation in jaxpr.eqns:
        found += [v.aval.shape for v in (*equation.invars, *equation.outvars)]
        for value in jax.tree.leaves(list(equation.params.values()), is_leaf=is_jaxpr):
            if is_jaxpr(value):
                found += shapes(getattr(value, "jaxpr", value))
    return found


def is_jaxpr(value) -> bool:
    return hasattr(value, "eqns") or hasattr(value, "jaxpr")

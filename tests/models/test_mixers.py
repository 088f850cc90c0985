"""Each mixer against its definition, written out in NumPy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nvfp4_jax.models import rope, segments
from nvfp4_jax.models.attention import attend
from nvfp4_jax.models.conv import causal_conv
from nvfp4_jax.models.norm import GatedGroupNorm, RMSNorm, normalize
from tests.models.small import build

pytestmark = pytest.mark.usefixtures("quick_to_compile")

DOCUMENTS = np.array([[3, 3, 3, 3, 4, 4, 9, 9, 9], [0, 1, 2, 2, 2, 2, 2, 2, 2]])


def normal(seed: int, *shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


@pytest.mark.parametrize("documents", [None, DOCUMENTS], ids=["whole", "packed"])
@pytest.mark.parametrize("length", [2, 9])
def test_convolution(documents, length):
    x, weight = np.asarray(normal(0, 2, length, 3)), np.asarray(normal(1, 4, 3))
    expected = np.zeros_like(x)
    for b in range(2):
        for t in range(length):
            for j in range(4):
                s = t - 3 + j
                if s >= 0 and (documents is None or documents[b, s] == documents[b, t]):
                    expected[b, t] += weight[j] * x[b, s]
    ids = None if documents is None else jnp.asarray(documents[:, :length])
    actual = causal_conv(jnp.asarray(x), jnp.asarray(weight), ids)
    np.testing.assert_allclose(actual, expected, atol=1e-6)


def naive_attention(q, k, v, documents):
    batch, length, heads, head_dim = q.shape
    out = np.zeros_like(q)
    for b in range(batch):
        for h in range(heads):
            kv = h // (heads // k.shape[2])
            for t in range(length):
                seen = [
                    s
                    for s in range(t + 1)
                    if documents is None or documents[b, s] == documents[b, t]
                ]
                scores = k[b, seen, kv] @ q[b, t, h] * head_dim**-0.5
                weights = np.exp(scores - scores.max())
                out[b, t, h] = weights @ v[b, seen, kv] / weights.sum()
    return out


@pytest.mark.parametrize("documents", [None, DOCUMENTS], ids=["whole", "packed"])
def test_attention_groups_causality_and_documents(documents):
    q, k, v = normal(0, 2, 9, 4, 6), normal(1, 2, 9, 2, 6), normal(2, 2, 9, 2, 6)
    ids = None if documents is None else jnp.asarray(documents)
    actual = jax.jit(attend)(q, k, v, ids)
    expected = naive_attention(*map(np.asarray, (q, k, v)), documents)
    np.testing.assert_allclose(actual, expected, atol=1e-6)


@pytest.mark.parametrize("length", [1, 14])
def test_attention_and_its_gradient_agree_with_jax(length):
    q, k, v = normal(0, 2, length, 4, 6), normal(1, 2, length, 2, 6), normal(2, 2, length, 2, 6)

    def ours(q, k, v):
        return (attend(q, k, v) ** 2).sum()

    def theirs(q, k, v):
        return (jax.nn.dot_product_attention(q, k, v, is_causal=True) ** 2).sum()

    gradients = (jax.jit(jax.grad(f, argnums=(0, 1, 2)))(q, k, v) for f in (ours, theirs))
    for actual, expected in zip(*gradients, strict=True):
        np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_attention_refuses_an_implementation_that_is_not_there():
    q = normal(0, 1, 4, 2, 8).astype(jnp.bfloat16)
    with pytest.raises(Exception, match=r"(?i)cudnn"):
        attend(q, q, q, implementation="cudnn")


def test_rope_depends_on_distances_only():
    q, k = normal(0, 1, 6, 1, 8), normal(1, 1, 6, 1, 8)

    def scores(start):
        place = start + jnp.arange(6)[None]
        return jnp.einsum(
            "bthd,bshd->bts", rope.rotate(q, place, 100.0), rope.rotate(k, place, 100.0)
        )

    np.testing.assert_allclose(scores(0), scores(50), atol=1e-4)
    assert np.abs(scores(0) - jnp.einsum("bthd,bshd->bts", q, k)).max() > 0.1


def test_rope_first_pair():
    """Channel 0 turns by one radian a token, its partner is half a head away."""
    x = jnp.zeros((1, 3, 1, 8)).at[..., 0].set(1)
    turned = rope.rotate(x, jnp.arange(3)[None], 100.0)[0, :, 0]
    np.testing.assert_allclose(turned[:, 0], np.cos([0, 1, 2]), atol=1e-6)
    np.testing.assert_allclose(turned[:, 4], np.sin([0, 1, 2]), atol=1e-6)


def test_segments_are_counted_by_boundaries():
    ids = jnp.asarray([[7, 7, 8, 7, 7, 7], [1, 2, 2, 2, 0, 0]])
    numbered = segments.number(ids)
    np.testing.assert_array_equal(numbered, [[0, 0, 1, 2, 2, 2], [0, 1, 1, 1, 2, 2]])
    np.testing.assert_array_equal(
        segments.positions(numbered), [[0, 1, 0, 0, 1, 2], [0, 0, 1, 2, 0, 1]]
    )


def test_norms():
    x, z = normal(0, 2, 3, 12), normal(1, 2, 3, 12)
    weight = jnp.linspace(0.5, 2, 12)
    norm = RMSNorm(12, eps=1e-5, param_dtype=jnp.float32)
    norm.weight[...] = weight
    mean_square = np.mean(np.square(x), -1, keepdims=True)
    np.testing.assert_allclose(
        norm(x), x / np.sqrt(mean_square + 1e-5) * weight[None, None], rtol=1e-5
    )

    grouped = GatedGroupNorm(12, 3, eps=1e-5, param_dtype=jnp.float32)
    grouped.weight[...] = weight
    u = np.asarray(x * jax.nn.silu(z)).reshape(2, 3, 3, 4)
    u = u / np.sqrt(np.mean(np.square(u), -1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(grouped(x, z), u.reshape(2, 3, 12) * weight[None, None], rtol=1e-5)


def test_gradient_of_the_norm():
    """Against the steps differentiated one by one."""
    x, dy = normal(0, 5, 12), normal(1, 5, 12)

    def steps(x):
        return x / jnp.sqrt(jnp.mean(jnp.square(x), -1, keepdims=True) + 1e-2)

    expected = jax.vjp(steps, x)[1](dy)[0]
    np.testing.assert_allclose(
        jax.vjp(lambda x: normalize(x, 1e-2), x)[1](dy)[0], expected, atol=1e-6
    )


def test_statistics_of_a_bfloat16_norm_are_float32():
    """A sum of 4096 squares in bfloat16 would stop growing at 256 (8 bits)."""
    x = jnp.ones((1, 4096), jnp.bfloat16)
    y = RMSNorm(4096, eps=1e-5, param_dtype=jnp.float32)(x)
    np.testing.assert_array_equal(y.astype(jnp.float32), np.ones((1, 4096)))


@pytest.mark.parametrize("kind", ["relu_squared", "swiglu"])
def test_mlp(kind):
    mlp = build(pattern="-", mlp=kind).blocks[0].mlp
    x = normal(0, 2, 5, 16)
    up = np.asarray(x @ mlp.up.kernel[...])
    if kind == "swiglu":
        gate = np.asarray(x @ mlp.gate.kernel[...])
        inner = gate / (1 + np.exp(-gate)) * up
    else:
        inner = np.maximum(up, 0) ** 2
    np.testing.assert_allclose(mlp(x), inner @ np.asarray(mlp.down.kernel[...]), atol=1e-4)

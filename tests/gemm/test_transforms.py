"""A layer under every transformation of JAX: the same bits, or an error that says why not."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nvfp4_jax as nvfp4

from .precisions import LEAN, PRECISIONS, numbers

AXES = (((1,), (0,)), ((), ()))
EXAMPLES = 3


def arrays():
    """Inputs, weights, gradients and keys of three examples."""
    x, w, g = (
        jnp.asarray(numbers((EXAMPLES, *shape), i))
        for i, shape in enumerate([(18, 20), (20, 24), (18, 24)])
    )
    return x, w, g, jax.random.split(jax.random.key(1), EXAMPLES)


def layer(x, w, g, key):
    """y, dx and dw of one layer."""
    dot_general = nvfp4.make_dot_general(LEAN, key)
    y, vjp = jax.vjp(lambda x, w: dot_general(x, w, AXES), x, w)
    return (y, *vjp(g))


@pytest.fixture(scope="module")
def one_by_one():
    x, w, g, keys = arrays()
    results = [jax.jit(layer)(x[i], w[i], g[i], keys[i]) for i in range(EXAMPLES)]
    return [jnp.stack(column) for column in zip(*results, strict=True)]


def assert_equal(actual, expected):
    for a, e in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(a, e)


def assert_close(actual, expected):
    """Batched products may sum in another order; a changed code would be a thousand times more."""
    for a, e in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, e, rtol=0, atol=1e-5 * float(jnp.abs(e).max()))


def test_eager(one_by_one):
    x, w, g, keys = arrays()
    assert_close(layer(x[0], w[0], g[0], keys[0]), [r[0] for r in one_by_one])


def test_vmap_quantizes_each_example_alone(one_by_one):
    assert_close(jax.jit(jax.vmap(layer))(*arrays()), one_by_one)


def test_scan_and_remat(one_by_one):
    def step(_, inputs):
        return None, jax.checkpoint(layer)(*inputs)

    _, results = jax.jit(lambda *xs: jax.lax.scan(step, None, xs))(*arrays())
    assert_close(results, one_by_one)


def test_remat_around_a_loss(one_by_one):
    x, w, g, keys = (a[0] for a in arrays())

    def loss(x, w):
        y = jax.checkpoint(lambda x, w: nvfp4.make_dot_general(LEAN, keys)(x, w, AXES))(x, w)
        return jnp.vdot(y, g)

    assert_close(jax.jit(jax.grad(loss, (0, 1)))(x, w), [r[0] for r in one_by_one[1:]])


@pytest.mark.parametrize("side", [0, 1])
def test_the_gradient_of_one_side_only(side, one_by_one):
    x, w, g, keys = (a[0] for a in arrays())

    def loss(x, w):
        return jnp.vdot(nvfp4.make_dot_general(LEAN, keys)(x, w, AXES), g)

    assert_close([jax.jit(jax.grad(loss, side))(x, w)], [one_by_one[1 + side][0]])


def test_typed_and_raw_keys():
    x, w, g, _ = (a[0] for a in arrays())
    typed = jax.jit(layer)(x, w, g, jax.random.key(8))
    assert_equal(jax.jit(layer)(x, w, g, jax.random.PRNGKey(8)), typed)
    other = jax.jit(layer)(x, w, g, jax.random.key(9))
    assert_equal(other[:1], typed[:1])  # Fprop rounds to nearest
    assert all(np.any(np.asarray(a) != b) for a, b in zip(other[1:], typed[1:], strict=True))


def test_a_producer_in_bf16_inside_the_same_jit():
    """Input and gradient that were just rounded to bf16 keep their rounding."""
    x, w, g, _ = (a[0] for a in arrays())
    rows = nvfp4.make_dot_general(PRECISIONS["rows"])

    def produced(x):
        return (x * jnp.float32(1.1)).astype(jnp.bfloat16)

    def products(x, w, g):
        _, vjp = jax.vjp(lambda a, b: rows(a, b, AXES), x, w)
        return vjp(g)[1]

    inside = jax.jit(lambda x, w, g: products(produced(x), w, produced(g)))(x, w, g)
    outside = jax.jit(products)(produced(x), w, produced(g))
    assert_close([inside], [outside])


def test_forward_mode_raises():
    x, w, _, keys = (a[0] for a in arrays())
    dot_general = nvfp4.make_dot_general(LEAN, keys)
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(lambda x: dot_general(x, w, AXES), (x,), (x,))

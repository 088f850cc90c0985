"""The scaled product on a Hopper GPU against exact sums and against float64."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nvfp4_jax.kernels.hopper_gemm import scaled_matmul

SCALES = (0.3, 1e-3)
LAYOUTS = list(itertools.product((0, 1), (0, 1)))
SHAPES = [  # (m, n, k)
    (64, 64, 64),
    (192, 320, 704),
    (32, 7200, 96),
    (1248, 672, 7200),
    (4096, 704, 64),
    (64, 8192, 1024),
    (2048, 64, 4096),
    (1920, 5056, 2112),
    (4096, 4096, 4096),
    (8192, 22656, 128),
]


def operand(seed: int, free: int, k: int, contract: int, integers: bool) -> jax.Array:
    shape = (free, k) if contract else (k, free)
    key = jax.random.key(seed)
    if integers:
        return jax.random.randint(key, shape, -6, 7).astype(jnp.bfloat16)
    return jax.random.normal(key, shape, jnp.bfloat16)


def run(a, b, layout, scales, dtype) -> np.ndarray:
    """On scales that are traced, over memory that held NaN a moment ago."""
    m, n = a.shape[1 - layout[0]], b.shape[1 - layout[1]]
    poison = [jnp.full((m, n), jnp.nan, dtype).block_until_ready() for _ in range(3)]
    del poison

    @jax.jit
    def product(a, b, scales):
        return scaled_matmul(a, b, *layout, scales, dtype)

    return np.asarray(product(a, b, tuple(map(jnp.float32, scales))))


def float64_product(a, b, layout) -> np.ndarray:
    a, b = (np.asarray(x, np.float64) for x in (a, b))
    return (a if layout[0] else a.T) @ (b.T if layout[1] else b)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_bits_where_every_sum_is_exact(shape, layout, dtype):
    """Products of small integers: no order of summation rounds, so the result has defined bits."""
    m, n, k = shape
    a = operand(0, m, k, layout[0], integers=True)
    b = operand(1, n, k, layout[1], integers=True)
    assert 36 * k < 2**24
    exact = np.asarray(
        jnp.einsum(
            "ij,jl->il",
            (a if layout[0] else a.T).astype(jnp.float32),
            (b.T if layout[1] else b).astype(jnp.float32),
            precision="highest",
        )
    )
    expected = (exact * np.float32(SCALES[0]) * np.float32(SCALES[1])).astype(dtype)
    np.testing.assert_array_equal(run(a, b, layout, SCALES, dtype), expected)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES[:8])
def test_float32_sums_of_normal_values(shape, layout):
    m, n, k = shape
    a = operand(2, m, k, layout[0], integers=False)
    b = operand(3, n, k, layout[1], integers=False)
    reference = float64_product(a, b, layout)
    error = run(a, b, layout, (), jnp.float32) - reference
    assert np.linalg.norm(error) <= 1e-6 * np.linalg.norm(reference)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_scales_are_those_of_multiplications_after(count):
    a, b = operand(4, 512, 768, 1, False), operand(5, 640, 768, 0, False)
    expected = run(a, b, (1, 0), (), jnp.float32)
    for scale in SCALES[:count]:
        expected = expected * np.float32(scale)
    np.testing.assert_array_equal(run(a, b, (1, 0), SCALES[:count], jnp.float32), expected)
    np.testing.assert_array_equal(
        run(a, b, (1, 0), SCALES[:count], jnp.bfloat16), expected.astype(jnp.bfloat16)
    )


def test_repeated_calls_give_the_same_bits():
    a, b = operand(6, 4096, 4096, 1, False), operand(7, 4096, 4096, 0, False)
    first = run(a, b, (1, 0), SCALES, jnp.float32)
    for _ in range(5):
        np.testing.assert_array_equal(run(a, b, (1, 0), SCALES, jnp.float32), first)


def test_inside_scan_and_checkpoint():
    x, w = operand(8, 256, 512, 1, False), operand(9, 512, 512, 0, False)
    scale = jnp.float32(0.05)

    def step(x, _):
        return scaled_matmul(x, w, 1, 0, (scale,)), None

    scanned = jax.jit(lambda x: jax.lax.scan(jax.checkpoint(step), x, None, length=4)[0])(x)
    looped = x
    for _ in range(4):
        looped = scaled_matmul(looped, w, 1, 0, (scale,))
    np.testing.assert_array_equal(np.asarray(scanned), np.asarray(looped))

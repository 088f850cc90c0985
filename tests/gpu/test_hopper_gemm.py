"""The scaled product on a Hopper GPU against exact sums and against float64."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nvfp4_jax.kernels.hopper_gemm import scaled_matmul
from nvfp4_jax.kernels.hopper_gemm_body import gemm_kernel
from nvfp4_jax.kernels.hopper_gemm_tiling import TILINGS, Problem

SCALES = (0.3, 1e-3)
LAYOUTS = list(itertools.product((0, 1), (0, 1)))
DTYPES = [jnp.bfloat16, jnp.float32]
SMALL = [(32, 96, 32), (192, 320, 704), (96, 7200, 96), (1248, 672, 7200)]  # (m, n, k)
LARGE = [
    (4096, 704, 64),
    (64, 8192, 1024),
    (2048, 22656, 128),
    (1920, 5056, 2112),
    (4096, 4096, 4096),
]
FPROP, DGRAD, WGRAD = ((1, 0), jnp.bfloat16), ((1, 1), jnp.bfloat16), ((0, 0), jnp.float32)
CASES = [
    *itertools.product(SMALL, itertools.product(LAYOUTS, DTYPES)),
    *itertools.product(LARGE, (FPROP, DGRAD, WGRAD)),
]


def operand(seed: int, free: int, k: int, contract: int) -> np.ndarray:
    """Integers of at most three bits, whose sums float32 holds exactly."""
    assert 36 * k < 2**24
    shape = (free, k) if contract else (k, free)
    return np.random.default_rng(seed).integers(-6, 7, shape).astype(np.float32)


def normal(seed: int, free: int, k: int, contract: int) -> np.ndarray:
    """Standard normal values, rounded to bf16."""
    shape = (free, k) if contract else (k, free)
    values = np.random.default_rng(seed).standard_normal(shape, np.float32)
    return values.astype(jnp.bfloat16).astype(np.float32)


def product(a: np.ndarray, b: np.ndarray, layout: tuple[int, int]) -> np.ndarray:
    return (a if layout[0] else a.T) @ (b.T if layout[1] else b)


def scaled(sums: np.ndarray, dtype) -> np.ndarray:
    return (sums * np.float32(SCALES[0]) * np.float32(SCALES[1])).astype(dtype)


def run(a, b, layout, scales, dtype) -> np.ndarray:
    """On scales that are traced, over memory that held NaN a moment ago."""
    m, n = a.shape[1 - layout[0]], b.shape[1 - layout[1]]
    poison = [jnp.full((m, n), jnp.nan, dtype).block_until_ready() for _ in range(3)]
    del poison

    @jax.jit
    def matmul(a, b, scales):
        return scaled_matmul(a, b, *layout, scales, dtype)

    a, b = (jnp.asarray(x, jnp.bfloat16) for x in (a, b))
    return np.asarray(matmul(a, b, tuple(map(jnp.float32, scales))))


@pytest.mark.parametrize(("shape", "kind"), CASES)
def test_bits_where_every_sum_is_exact(shape, kind):
    """No order of summation rounds here, so the result has defined bits."""
    (m, n, k), (layout, dtype) = shape, kind
    a, b = operand(0, m, k, layout[0]), operand(1, n, k, layout[1])
    expected = scaled(product(a, b, layout), dtype)
    np.testing.assert_array_equal(run(a, b, layout, SCALES, dtype), expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tiling", TILINGS)
def test_bits_of_every_tiling(tiling, dtype):
    """Whatever the table would have chosen for this shape; several tiles an SM, edges included."""
    m, n, k = 4288, 3872, 416
    layout = (1, 0) if dtype == jnp.bfloat16 else (0, 0)
    a, b = operand(2, m, k, layout[0]), operand(3, n, k, layout[1])
    problem = Problem(m, n, k, *layout, np.dtype(dtype))
    kernel = jax.jit(gemm_kernel(problem, tiling, 2, 132))
    scales = [jnp.full(1, scale, jnp.float32) for scale in SCALES]
    y = kernel(jnp.asarray(a, jnp.bfloat16), jnp.asarray(b, jnp.bfloat16), *scales)
    np.testing.assert_array_equal(np.asarray(y), scaled(product(a, b, layout), dtype))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [*SMALL, LARGE[3]])
def test_float32_sums_of_normal_values(shape, layout):
    """Hopper's tensor cores add 16 products at a time to a sum they cut off at 24 bits.

    Cutting off, unlike rounding, is biased: half of 2^-23 of the sum at each of k / 16 additions.
    Measured are 8e-6 at k = 7200 and 2.2e-6 at k = 2112.
    """
    m, n, k = shape
    a, b = normal(4, m, k, layout[0]), normal(5, n, k, layout[1])
    reference = product(a.astype(np.float64), b.astype(np.float64), layout)
    error = run(a, b, layout, (), jnp.float32) - reference
    assert np.linalg.norm(error) <= (1e-6 + k / 16 * 2**-24) * np.linalg.norm(reference)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_scales_are_those_of_multiplications_after(count):
    a, b = normal(6, 512, 768, 1), normal(7, 640, 768, 0)
    expected = run(a, b, (1, 0), (), jnp.float32)
    for scale in SCALES[:count]:
        expected = expected * np.float32(scale)
    for dtype in DTYPES:
        y = run(a, b, (1, 0), SCALES[:count], dtype)
        np.testing.assert_array_equal(y, expected.astype(dtype))


def test_repeated_calls_give_the_same_bits():
    a, b = normal(8, 4096, 4096, 1), normal(9, 4096, 4096, 0)
    first = run(a, b, (1, 0), SCALES, jnp.float32)
    for _ in range(3):
        np.testing.assert_array_equal(run(a, b, (1, 0), SCALES, jnp.float32), first)


def test_inside_scan_and_checkpoint():
    x, w = (jnp.asarray(normal(s, 512, 512, 1), jnp.bfloat16) for s in (10, 11))
    scale = jnp.float32(0.05)

    def step(x, _):
        return scaled_matmul(x, w, 1, 0, (scale,)), None

    scanned = jax.jit(lambda x: jax.lax.scan(jax.checkpoint(step), x, None, length=4)[0])(x)
    looped = x
    for _ in range(4):
        looped = scaled_matmul(looped, w, 1, 0, (scale,))
    np.testing.assert_array_equal(np.asarray(scanned), np.asarray(looped))

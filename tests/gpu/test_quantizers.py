"""The fused quantizers on a real GPU: the definition's bits on every shape, and every time."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nvfp4_jax.kernels import blocks, launch, xla
from nvfp4_jax.kernels.launch import Copy
from nvfp4_jax.quantizer import Quantizer
from tests.kernels.cases import (
    BF16,
    COLUMN_WISE,
    KEYS,
    ROTATED,
    ROW_WISE,
    SIGNS,
    START,
    TILES,
    bits,
    expected_operand,
    stochastic,
    tensor,
)

F32 = np.float32
PLAIN = (ROW_WISE, ROTATED)
DUAL = (stochastic(ROW_WISE), stochastic(ROTATED))
WORDS = (stochastic(ROW_WISE, 16), stochastic(COLUMN_WISE, 32))
SQUARE = (TILES, stochastic(Copy("rows", square=True)))
MIXED = (stochastic(Copy("columns", rht=True)), COLUMN_WISE)


@functools.cache
def compiled(copies, round_to_bf16=False):
    """x -> operands, largest magnitudes computed, as a training step does it."""

    @jax.jit
    def run(x):
        amax = launch.amax_bits(x, copies, SIGNS, round_to_bf16)
        keys = jnp.asarray(KEYS[: len(copies)])
        start = jnp.asarray(START)
        return launch.operands(x, copies, amax, SIGNS, keys, start, x.shape[1], round_to_bf16)

    return run


def operands(x, copies, round_to_bf16=False):
    return compiled(copies, round_to_bf16)(jnp.asarray(x))


def defined(x, copy: Copy, key):
    """The same by `xla`, on the same GPU."""
    quantizer = Quantizer(
        granularity="16x16" if copy.square else "1x16",
        rounding="stochastic" if copy.bits else "nearest",
        bits=copy.bits or 8,
        rht=16 if copy.rht else 0,
    )

    @jax.jit
    def run(x):
        axis = 2 if copy.axis == "columns" else 1
        r = xla.round_to_format(x, quantizer, axis, jnp.asarray(key), SIGNS)
        operand = (r.values * r.block_scale).astype(jnp.bfloat16)
        return blocks.join(operand, r.lengths, r.shape)

    return run(jnp.asarray(x))


def differing(a, b) -> int:
    """Elements whose bits differ, counted on the GPU."""
    return int(jnp.sum(a.view(jnp.uint16) != b.view(jnp.uint16)))


@pytest.mark.parametrize(
    ("shape", "dtype", "copies"),
    [
        ((1, 8192, 8192), BF16, DUAL),
        ((1, 8192, 8192), BF16, PLAIN),
        ((1, 8191, 5000), BF16, SQUARE),
        ((1, 8191, 5000), F32, DUAL),
        ((3, 517, 1001), BF16, WORDS),
        ((5, 33, 64), F32, SQUARE),
        ((40, 16, 16), BF16, MIXED),
        ((2, 1, 7), F32, PLAIN),
    ],
    ids=str,
)
def test_the_bits_are_the_definitions(shape, dtype, copies):
    x = tensor("wide", shape, dtype)
    for got, copy, key in zip(operands(x, copies), copies, KEYS, strict=True):
        want = defined(x, copy, key)
        assert got.shape == want.shape
        assert differing(got, want) == 0, copy


@pytest.mark.parametrize("copies", [DUAL, SQUARE, MIXED], ids=str)
@pytest.mark.parametrize("kind", ["wide", "blocks", "tiny", "huge", "zero"])
def test_the_bits_are_the_oracles(kind, copies):
    """Where XLA flushes subnormal numbers, only the oracle can tell."""
    for shape, dtype in (((1, 48, 80), BF16), ((1, 32, 96), F32)):
        x = tensor(kind, shape, dtype)
        if kind == "huge" and any(copy.rht for copy in copies):
            x = (x.astype(F32) / 16).astype(dtype)
        for got, copy, key in zip(operands(x, copies), copies, KEYS, strict=True):
            np.testing.assert_array_equal(bits(got), bits(expected_operand(x, copy, key)))


@pytest.mark.parametrize("copy", [stochastic(TILES), stochastic(ROTATED), ROW_WISE], ids=str)
def test_a_master_weight_is_rounded_as_it_is_read(copy):
    x = tensor("normal", (1, 2047, 1003), F32)
    (got,) = operands(x, (copy,), round_to_bf16=True)
    assert differing(got, defined(x.astype(BF16), copy, KEYS[0])) == 0


@pytest.mark.parametrize(
    ("shape", "copy"),
    [
        ((1, 4096, 4096), stochastic(ROTATED)),
        ((1, 4096, 4096), TILES),
        ((3, 517, 1001), stochastic(ROW_WISE)),
        ((3, 517, 1001), Copy("rows", square=True)),
    ],
    ids=str,
)
def test_packed_and_unpacked_they_are_the_same(shape, copy):
    x = tensor("wide", shape)
    (want,) = operands(x, (copy,))

    @jax.jit
    def there_and_back(x):
        amax = launch.amax_bits(x, (copy,), SIGNS)
        keys = jnp.asarray(KEYS[:1])
        codes = launch.packed(x, copy, amax, SIGNS, keys, jnp.asarray(START), x.shape[1])
        return launch.unpacked(*codes, want.shape, copy)

    assert differing(there_and_back(jnp.asarray(x)), want) == 0


@pytest.mark.parametrize("copies", [DUAL, SQUARE], ids=str)
def test_repeated_calls_agree(copies):
    x = tensor("normal", (1, 2048, 2048))
    first = operands(x, copies)
    for _ in range(5):
        for a, b in zip(first, operands(x, copies), strict=True):
            assert differing(a, b) == 0


@pytest.mark.parametrize("copy", [stochastic(ROW_WISE), stochastic(COLUMN_WISE)], ids=str)
def test_noise_does_not_repeat_between_tiles(copy):
    """Equal tiles of 16x64 differ by their noise alone, and so no two of them come out equal."""
    x = np.full((1, 1024, 1024), 0.3, F32)
    x[:, ::16, ::16] = 6  # one a block along either axis, so that scales are those of 6
    (got,) = operands(x.astype(BF16), (copy,))
    tiles = np.asarray(got).view(np.uint16).reshape(64, 16, 16, 64).swapaxes(1, 2)
    rows = tiles.reshape(1024, 16 * 64)
    assert len(np.unique(rows, axis=0)) == len(rows)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_survives_in_the_largest_magnitude(bad):
    x = tensor("normal", (1, 4096, 1024))
    x[0, 4000, 77] = bad
    for copies in ((ROW_WISE,), (ROW_WISE, ROTATED)):
        got = jax.jit(lambda x, copies=copies: launch.amax_bits(x, copies, SIGNS))(x)
        assert np.all(np.asarray(got) >= F32(np.inf).view(np.int32))

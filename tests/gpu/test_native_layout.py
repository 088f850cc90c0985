"""Native operands on a real GPU, by arithmetic rounding, and what a product makes of their bytes.

No GPU here has 4-bit tensor cores or the casts to 4 bits; the bytes are those it would read.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nvfp4_jax.kernels import blackwell_layout, blackwell_quantize, launch, xla
from nvfp4_jax.kernels.tiles import Copy
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
    expected,
    stochastic,
    tensor,
)
from tests.kernels.native_product import product
from tests.oracle import native
from tests.oracle.formats import E2M1, E4M3

F32 = np.float32
PLAIN = (ROW_WISE, ROTATED)
DUAL = (stochastic(ROW_WISE), stochastic(ROTATED))
WORDS = (stochastic(ROW_WISE, 16), stochastic(COLUMN_WISE, 32))
SQUARE = (TILES, stochastic(Copy("rows", square=True)))
ROTATED_ROW_WISE = (stochastic(Copy("columns", rht=True)),)


@functools.cache
def compiled(copies, round_to_bf16=False):
    """x -> native operands, largest magnitudes computed, as a training step does it."""

    @jax.jit
    def run(x):
        amax = launch.amax_bits(x, copies, SIGNS, round_to_bf16)
        keys = jnp.asarray(KEYS[: len(copies)])
        start = jnp.asarray(START)
        return blackwell_quantize.native_operands(
            x, copies, amax, SIGNS, keys, start, x.shape[1], round_to_bf16, hardware=False
        )

    return run


@functools.cache
def defined(copy: Copy):
    """x, key -> the same by `xla`, on the same GPU."""
    quantizer = Quantizer(
        granularity="16x16" if copy.square else "1x16",
        rounding="stochastic" if copy.bits else "nearest",
        bits=copy.bits or 8,
        rht=16 if copy.rht else 0,
    )

    @jax.jit
    def run(x, key):
        axis = -1 if copy.axis == "columns" else -2
        q = xla.quantize(x[0], quantizer, axis, key, SIGNS)
        parts = (jnp.moveaxis(part, axis, -1) for part in (q.data, q.block_scale))
        return blackwell_layout.from_linear(*parts)

    return run


def differing(a, b) -> int:
    """Bytes that differ, counted on the GPU."""
    a, b = (jax.lax.bitcast_convert_type(x, jnp.uint8) for x in (a, b))
    return int(jnp.sum(a != b))


@pytest.mark.parametrize(
    ("shape", "dtype", "copies"),
    [
        ((1, 8192, 8192), BF16, DUAL),
        ((1, 8192, 8192), BF16, PLAIN),
        ((1, 2048, 22656), BF16, (stochastic(ROW_WISE),)),
        ((1, 8191, 5000), BF16, SQUARE),
        ((1, 4099, 3001), F32, DUAL),
        ((1, 517, 1001), BF16, WORDS),
        ((1, 517, 1002), BF16, ROTATED_ROW_WISE),
        ((1, 1, 7), F32, PLAIN),
    ],
    ids=str,
)
def test_the_bytes_are_the_definitions(shape, dtype, copies):
    x = jnp.asarray(tensor("wide", shape, dtype))
    for got, copy, key in zip(compiled(copies)(x), copies, KEYS, strict=False):
        want = defined(copy)(x, jnp.asarray(key))
        for one, other in zip(got, want, strict=True):
            assert one.shape == other.shape
            assert differing(one, other) == 0, copy


@pytest.mark.parametrize("copies", [DUAL, SQUARE, WORDS], ids=str)
@pytest.mark.parametrize("kind", ["wide", "blocks", "tiny", "huge", "zero"])
def test_read_back_they_are_the_oracles(kind, copies):
    """Where XLA flushes subnormal numbers, only the oracle can tell."""
    x = tensor(kind, (1, 150, 72), BF16)
    if kind == "huge":
        x = (x.astype(F32) / 16).astype(BF16)  # for what rotates
    for (codes, scales), copy, key in zip(compiled(copies)(x), copies, KEYS, strict=True):
        want = expected(x, copy, key)
        got, scale = native.read(np.asarray(codes), np.asarray(scales))
        rows, length = want.codes.shape
        np.testing.assert_array_equal(bits(got)[:, :length], bits(want.codes) & 15)
        assert not bits(got)[:, length:].any()
        of_rows = bits(np.repeat(want.scale, want.block[0], axis=0)[:rows])
        np.testing.assert_array_equal(bits(scale)[:, : of_rows.shape[1]], of_rows)
        assert not native.padding(np.asarray(scales), rows, of_rows.shape[1]).any()


def test_a_master_weight_is_rounded_as_it_is_read():
    x = jnp.asarray(tensor("normal", (1, 2047, 1003), F32))
    copies = (stochastic(TILES), ROTATED)
    for got, copy, key in zip(compiled(copies, True)(x), copies, KEYS, strict=True):
        want = defined(copy)(x.astype(jnp.bfloat16), jnp.asarray(key))
        assert [differing(*pair) for pair in zip(got, want, strict=True)] == [0, 0]


def test_repeated_calls_agree():
    x = jnp.asarray(tensor("normal", (1, 2048, 2048)))
    first = jax.tree.leaves(compiled(DUAL)(x))
    for _ in range(5):
        again = jax.tree.leaves(compiled(DUAL)(x))
        assert [differing(*pair) for pair in zip(first, again, strict=True)] == [0] * 4


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("sizes", [(64, 64, 128), (200, 300, 700), (129, 1, 16)], ids=str)
def test_a_product_whose_sums_are_exact(sizes, bf16):
    """Random codes with scales 1 and 2: no order of summation rounds, so it has defined bits."""
    m, n, k = sizes
    assert 144 * k * 4 < 2**24
    random = np.random.default_rng(0)
    operands, values = [], []
    for rows in (m, n):
        codes = random.integers(0, 16, (rows, k), np.uint8).view(E2M1)
        scale = np.exp2(random.integers(0, 2, (rows, -(-k // 16)))).astype(E4M3)
        operands.append(blackwell_layout.from_linear(jnp.asarray(codes), jnp.asarray(scale)))
        values.append(codes.astype(F32) * np.repeat(scale.astype(F32), 16, axis=1)[:, :k])
    got = jax.jit(lambda a, b: product(a, b, bf16))(*operands)
    np.testing.assert_array_equal(np.asarray(got), values[0] @ values[1].T)


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize(
    ("shapes", "copies"),
    [
        (((300, 520), (520, 260)), (ROW_WISE, Copy("rows", square=True))),
        (((300, 260), (520, 260)), (stochastic(ROW_WISE), TILES)),
        (((300, 520), (300, 260)), (ROTATED, stochastic(ROTATED))),
    ],
    ids=["fprop", "dgrad", "wgrad"],
)
def test_a_product_of_what_is_quantized_here(shapes, copies, bf16):
    """The quantizers' bytes, multiplied, against the definition's values in float64.

    Hopper's tensor cores add 16 products at a time to a sum, all cut off at 24 bits; the float32
    product rounds every sum.
    """
    pair, values = [], []
    for seed, (shape, copy) in enumerate(zip(shapes, copies, strict=True)):
        x = tensor("normal", (1, *shape), BF16, seed)
        (operand,) = compiled((copy,))(jnp.asarray(x))
        pair.append(operand)
        values.append(expected(x, copy, KEYS[0]).operand().astype(np.float64))
    got = np.asarray(jax.jit(lambda a, b: product(a, b, bf16))(*pair))
    size = np.abs(values[0]) @ np.abs(values[1]).T
    steps = -(-values[0].shape[1] // 16)
    unit = 2.0**-23 if bf16 else 2.0**-24
    assert np.all(np.abs(got - values[0] @ values[1].T) <= 17 * steps * unit * size)


def test_more_bytes_than_32_bits_count():
    """The end of a tensor of 2^33 elements, against a shard of it."""
    rows, columns, last = 2**17, 2**16, 256
    block = jax.random.normal(jax.random.key(0), (1024, columns), jnp.bfloat16)
    x = jax.jit(lambda block: jnp.tile(block, (rows // 1024, 1))[None])(block)
    copies = (stochastic(ROW_WISE), stochastic(COLUMN_WISE))
    amax = jnp.full(2, F32(6).view(np.int32))

    @jax.jit
    def run(x, start):
        arguments = (amax, SIGNS, jnp.asarray(KEYS), start, rows)
        return blackwell_quantize.native_operands(x, copies, *arguments, hardware=False)

    (codes, scales), (down, down_scales) = run(x, jnp.asarray(START))
    start = jnp.asarray([0, rows - last, 0], jnp.uint32)
    shard, down_shard = run(jnp.asarray(x[:, -last:]), start)
    tiles = last // blackwell_layout.SCALE_LENGTH
    assert differing(codes[-last:], shard[0]) == 0
    assert differing(scales[-last // 128 :], shard[1]) == 0
    assert differing(down[:, -last // 2 :], down_shard[0]) == 0
    assert differing(down_scales[:, -tiles:], down_shard[1]) == 0

"""Native operands, bit for bit: packed codes and swizzled scales, read by the oracle's own reader.

Interpreted, with the casts by arithmetic and with Blackwell's instructions as the PTX ISA
describes them. The second shows that codes, lanes and random bytes are where the description has
them; that the hardware does what its description says, no test here can show.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nvfp4_jax.kernels import blackwell_layout, blackwell_quantize, xla
from nvfp4_jax.kernels.tiles import Copy
from nvfp4_jax.quantizer import Quantizer
from tests.oracle import native
from tests.oracle.formats import E2M1, E4M3

from .cases import (
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

F32 = np.float32
TILES_DOWN = Copy("rows", square=True)
ROTATED_ROW_WISE = Copy("columns", rht=True)
DUAL = (stochastic(ROW_WISE), stochastic(ROTATED))


def operands(launch, x, copies, start=START, rows=None, amax=None, hardware=False, **kwargs):
    x, keys = jnp.asarray(x), jnp.asarray(KEYS[: len(copies)])
    if amax is None and x.size:
        amax = launch.amax_bits(x, copies, SIGNS, kwargs.get("round_to_bf16", False))
    rows = x.shape[1] if rows is None else rows
    arguments = (amax, SIGNS, keys, jnp.asarray(start), rows)
    kwargs |= {"compute_capability": 100 if hardware else 90, "hardware": hardware}
    return blackwell_quantize.native_operands(x, copies, *arguments, **kwargs)


def check(operand, want) -> None:
    """The codes and scales of the oracle's `want`, and zeros everywhere else."""
    codes, scales = (np.asarray(part) for part in operand)
    rows, length = want.codes.shape
    got, scale = native.read(codes, scales)
    assert codes.shape == (rows, -(-length // 256) * 128)
    np.testing.assert_array_equal(bits(got)[:, :length], bits(want.codes) & 15)
    assert not bits(got)[:, length:].any()
    of_rows = bits(np.repeat(want.scale, want.block[0], axis=0)[:rows])
    blocks = of_rows.shape[1]
    np.testing.assert_array_equal(bits(scale)[:, :blocks], of_rows)
    assert not native.padding(scales, rows, blocks).any()


@pytest.mark.parametrize("hardware", [False, True], ids=["arithmetic", "instructions"])
@pytest.mark.parametrize(
    ("kind", "shape", "dtype", "copies"),
    [
        ("wide", (1, 35, 72), BF16, DUAL),
        ("wide", (1, 150, 24), BF16, (ROW_WISE, ROTATED)),
        ("wide", (1, 17, 101), F32, (ROW_WISE, stochastic(COLUMN_WISE))),
        ("wide", (1, 33, 40), F32, (stochastic(ROW_WISE, 16), stochastic(ROTATED, 32))),
        ("blocks", (1, 48, 80), BF16, (TILES, stochastic(TILES_DOWN))),
        ("normal", (1, 20, 37), F32, (TILES_DOWN,)),
        ("blocks", (1, 20, 37), BF16, (stochastic(TILES),)),
        ("wide", (1, 5, 23), BF16, (stochastic(ROTATED_ROW_WISE),)),
        ("wide", (1, 18, 280), BF16, (stochastic(ROW_WISE),)),
        ("wide", (1, 140, 7), BF16, (ROW_WISE,)),
        ("normal", (1, 1, 1), F32, (ROTATED,)),
        ("normal", (1, 1, 5), BF16, (stochastic(ROW_WISE), COLUMN_WISE)),
        ("tiny", (1, 16, 32), F32, (ROW_WISE, stochastic(ROTATED))),
        ("huge", (1, 16, 32), F32, (ROW_WISE, stochastic(COLUMN_WISE))),
        ("zero", (1, 16, 32), BF16, DUAL),
    ],
    ids=str,
)
def test_read_back_they_are_the_oracles(interpreted, kind, shape, dtype, copies, hardware):
    x = tensor(kind, shape, dtype)
    made = operands(interpreted, x, copies, hardware=hardware)
    for operand, copy, key in zip(made, copies, KEYS, strict=False):
        check(operand, expected(x, copy, key))


COPIES = st.builds(
    Copy,
    axis=st.sampled_from(["rows", "columns"]),
    square=st.booleans(),
    rht=st.booleans(),
    bits=st.sampled_from([0, 8]),
)


@settings(max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 40), st.integers(1, 40), st.tuples(COPIES, COPIES), st.booleans())
def test_any_two_copies_of_any_shape(interpreted, rows, columns, copies, hardware):
    x = tensor("blocks", (1, rows, columns), BF16, rows + columns)
    made = operands(interpreted, x, copies, hardware=hardware)
    for operand, copy, key in zip(made, copies, KEYS, strict=True):
        check(operand, expected(x, copy, key))


@pytest.mark.parametrize("copy", [stochastic(ROTATED), TILES_DOWN], ids=str)
def test_they_are_the_definitions(interpreted, copy):
    """`xla.to_packed`, in the other order of bytes."""
    x = tensor("wide", (1, 40, 56))
    ((codes, scale),) = operands(interpreted, x, (copy,))
    quantizer = Quantizer(
        granularity="16x16" if copy.square else "1x16",
        rounding="stochastic" if copy.bits else "nearest",
        rht=16 if copy.rht else 0,
    )
    axis = -1 if copy.axis == "columns" else -2
    q = xla.quantize(jnp.asarray(x[0]), quantizer, axis, jnp.asarray(KEYS[0]), SIGNS)
    data, scales = (jnp.moveaxis(part, axis, -1) for part in (q.data, q.block_scale))
    want = blackwell_layout.from_linear(data, scales)
    np.testing.assert_array_equal(codes, want[0])
    np.testing.assert_array_equal(bits(scale), bits(want[1]))


@settings(max_examples=8)
@given(st.integers(1, 200), st.integers(1, 200), st.booleans(), st.integers(0, 2**32 - 1))
def test_the_layout_is_the_documented_one(rows, length, square, seed):
    """`from_linear` as the oracle reads it, and `to_linear` as its inverse."""
    random = np.random.default_rng(seed)
    blocks = -(-length // 16)
    codes = random.integers(0, 16, (rows, length), np.uint8).view(E2M1)
    scale = random.integers(0, 127, (-(-rows // 16) if square else rows, blocks), np.uint8)
    made = blackwell_layout.from_linear(jnp.asarray(codes), jnp.asarray(scale.view(E4M3)))
    whole = np.repeat(scale, 16 if square else 1, axis=0)[:rows]
    packed, tiles = (np.asarray(part) for part in made)
    assert packed.shape == blackwell_layout.codes_shape(rows, length)
    assert tiles.shape == blackwell_layout.scale_shape(rows, length)
    got, read = native.read(packed, tiles)
    np.testing.assert_array_equal(bits(got)[:, :length], bits(codes))
    np.testing.assert_array_equal(bits(read)[:, :blocks], whole)
    assert not bits(got)[:, length:].any()
    assert not native.padding(tiles, rows, blocks).any()
    back, linear = blackwell_layout.to_linear(*made, length)
    np.testing.assert_array_equal(bits(back), bits(codes))
    np.testing.assert_array_equal(bits(linear), whole)


@pytest.mark.parametrize("at", [(0, 0), (128, 0), (0, 128), (128, 128)])
def test_a_shard_is_its_part_of_the_whole(interpreted, at):
    """Codes and scales of shards of 128 rows and columns lie side by side as the whole does."""
    x = tensor("normal", (1, 256, 256))
    amax = interpreted.amax_bits(jnp.asarray(x), DUAL, SIGNS)
    row, column = at
    part = x[:, row : row + 128, column : column + 128]
    start = np.asarray([0, row, column], np.uint32)
    shard = operands(interpreted, part, DUAL, start, 256, amax, length_multiple=128)
    whole = operands(interpreted, x, DUAL, amax=amax)
    places = [(row, column), (column, row)]
    for one, every, (first, along) in zip(shard, whole, places, strict=True):
        bytes_of_row = slice(along // 2, along // 2 + 64)
        np.testing.assert_array_equal(one[0], every[0][first : first + 128, bytes_of_row])
        tiles = every[1][first // 128 : first // 128 + 1, along // 64 : along // 64 + 2]
        np.testing.assert_array_equal(bits(one[1]), bits(tiles))


def test_a_master_weight_is_rounded_as_it_is_read(interpreted):
    x = tensor("wide", (1, 33, 40), F32)
    copies = (stochastic(TILES), ROTATED)
    made = operands(interpreted, x, copies, round_to_bf16=True)
    for operand, copy, key in zip(made, copies, KEYS, strict=True):
        check(operand, expected(x.astype(BF16), copy, key))


@pytest.mark.parametrize(
    ("shape", "kwargs", "words"),
    [
        ((2, 4, 4), {}, "one matrix"),
        ((1, 0, 4), {}, "empty"),
        ((1, 4, 4), {"length_multiple": 32}, "length_multiple = 32"),
    ],
)
def test_what_cannot_be_done_is_refused(interpreted, shape, kwargs, words):
    with pytest.raises(ValueError, match=words):
        operands(interpreted, np.ones(shape, F32), (ROW_WISE,), **kwargs)


def test_instructions_that_a_gpu_lacks_are_refused():
    assert blackwell_quantize.has_hardware_casts(103, None)
    assert not blackwell_quantize.has_hardware_casts(90, None)
    assert not blackwell_quantize.has_hardware_casts(120, None)
    with pytest.raises(ValueError, match="hardware = True for compute capability 90"):
        blackwell_quantize.has_hardware_casts(90, True)


def test_scales_of_another_shape_are_refused():
    codes = jnp.zeros((20, 32), E2M1)
    with pytest.raises(ValueError, match="expected"):
        blackwell_layout.from_linear(codes, jnp.zeros((3, 2), E4M3))

"""The oracle against things that are more obvious still: fractions, matrices, published values."""

from __future__ import annotations

from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest

from . import hadamard, layout, philox, rounding, scales
from .formats import E2M1, E4M3, E5M2, ELEMENT, Spec
from .quantize import quantize

ELEMENTS = [E2M1, E4M3, E5M2]


def codes(element: np.dtype) -> np.ndarray:
    """Every non-negative finite code, ascending, as float32."""
    count = 8 if element == E2M1 else 128
    values = np.arange(count, dtype=np.uint8).view(element).astype(np.float32)
    return values[np.isfinite(values)]


def nearest_by_fractions(y: float, values: np.ndarray) -> float:
    """The nearest of `values` to y, ties to the even code, compared as exact fractions."""
    high = min(int(np.searchsorted(values, y)), len(values) - 1)
    low = max(high - 1, 0)
    down, up = (abs(Fraction(float(values[i])) - Fraction(y)) for i in (low, high))
    even = low if low % 2 == 0 else high
    return float(values[even if down == up else low if down < up else high])


def test_the_element_table_agrees_with_ml_dtypes():
    for element in ELEMENTS:
        largest, mantissa_bits, smallest_normal, largest_exponent = ELEMENT[element]
        info = ml_dtypes.finfo(element)
        assert largest == float(info.max) == codes(element).max()
        assert (mantissa_bits, smallest_normal) == (info.nmant, info.minexp)
        assert 2.0**largest_exponent <= largest < 2.0 ** (largest_exponent + 1)


@pytest.mark.parametrize("element", ELEMENTS, ids=str)
def test_nearest_is_the_nearest_with_ties_to_even(element):
    values = codes(element)
    middles = (values[1:] + values[:-1]) / 2
    probes = np.concatenate(
        [values, middles, np.nextafter(middles, 0), np.nextafter(middles, np.float32(np.inf))]
    ).astype(np.float32)
    expected = np.asarray([nearest_by_fractions(float(p), values) for p in probes], np.float32)
    np.testing.assert_array_equal(rounding.nearest(probes, element).astype(np.float32), expected)
    np.testing.assert_array_equal(rounding.nearest(-probes, element).astype(np.float32), -expected)


@pytest.mark.parametrize("element", ELEMENTS, ids=str)
def test_stochastic_takes_one_of_the_two_neighbours(element):
    values = codes(element)
    y = np.random.default_rng(0).uniform(0, values.max(), 2000).astype(np.float32)
    y[:1000] *= np.float32(2.0**-8)
    low = values[np.searchsorted(values, y, side="right") - 1]
    high = values[np.minimum(np.searchsorted(values, y, side="left"), values.size - 1)]
    down = rounding.stochastic(y, np.zeros_like(y), element).astype(np.float32)
    up = rounding.stochastic(y, np.full_like(y, 1 - 2.0**-8), element).astype(np.float32)
    np.testing.assert_array_equal(down, low)
    assert np.all((up == low) | (up == high))
    # u = 255/256 leaves down only those within 1/256 of a gap above the lower neighbour.
    assert np.all(y[up == low] - low[up == low] <= (high - low)[up == low] / 256)


def test_philox_check_value():
    words = philox.philox4x32(np.zeros(4, np.uint32), (0, 0))
    assert [f"{w:08x}" for w in words] == ["6627e8d5", "e169c58d", "bc57ac4c", "9b00dbd8"]


def test_philox_all_ones():
    """The second known answer that Random123 ships: every bit of key and counter set."""
    words = philox.philox4x32(np.full(4, 0xFFFFFFFF, np.uint32), (0xFFFFFFFF,) * 2)
    assert [f"{w:08x}" for w in words] == ["408f276d", "41c83b0e", "a20bc7c6", "6d5451fd"]


def test_bits_are_cut_from_the_lowest_end_of_a_call():
    columns = np.arange(16)
    eight = philox.bits_at(0, columns, (0, 0), 8)
    assert list(eight[:5]) == [0xD5, 0xE8, 0x27, 0x66, 0x8D]
    sixteen = philox.bits_at(0, columns[:8], (0, 0), 16)
    assert list(sixteen[:3]) == [0xE8D5, 0x6627, 0xC58D]
    assert list(philox.bits_at(0, columns[:2], (0, 0), 32)) == [0x6627E8D5, 0xE169C58D]


def test_rotation_is_the_matrix():
    for n in (2, 16, 64):
        signs = np.where(np.random.default_rng(n).random(n) < 0.5, -1, 1)
        h = np.ones((1, 1))
        while h.shape[0] < n:
            h = np.block([[h, h], [h, -h]])
        x = np.random.default_rng(1).normal(size=(3, 2 * n)).astype(np.float32)
        expected = (x.reshape(3, 2, n) @ (np.diag(signs) @ h / np.sqrt(n))).reshape(3, 2 * n)
        np.testing.assert_allclose(hadamard.rotate(x, signs), expected, rtol=0, atol=1e-6)


def test_exponents_are_ceilings_and_floors():
    for amax, up, floor in [(6, 0, 0), (6.0000005, 1, 0), (1, -2, -2), (1.5, -2, -2), (8, 1, 1)]:
        assert scales.exponent_up(np.float32(amax), 6.0) == up
        assert scales.exponent_floor(np.float32(amax), 2) == floor


def test_a_matrix_and_back():
    x = np.arange(2 * 3 * 4).reshape(2, 3, 4)
    for axis in range(3):
        matrix = layout.as_matrix(x, (axis,))
        np.testing.assert_array_equal(layout.from_matrix(matrix, x.shape, axis), x)
    row, column = layout.places(x.shape, (1,), None, 3)
    np.testing.assert_array_equal(row * 4 + column, layout.as_matrix(x, (1,)))


def test_a_tile_of_the_weight_and_of_its_transpose():
    w = np.random.default_rng(2).normal(size=(40, 24)).astype(np.float32)
    spec = Spec(granularity="16x16")
    one, other = quantize(w, spec, axis=0), quantize(w.T, spec, axis=0)
    np.testing.assert_array_equal(one.dequantize().T, other.dequantize())

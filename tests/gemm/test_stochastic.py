"""Stochastic rounding as training meets it: unbiased to its bits, and independent everywhere.

Everything is read off the gradients of a custom_vjp under jit, remat and scan (`noise.py`), so
rounding that was lost, replaced by rounding to nearest, or fed the same bits twice cannot hide.
"""

from __future__ import annotations

import jax
import numpy as np
import pytest

from nvfp4_jax import Quantizer

from .noise import LAYERS, SIZE, informative, pinned, revealed

STEPS = 8
COPIES = ("dgrad", "wgrad")
# At a boundary of 8 bits, between two of them, near one of 16 bits, and anywhere.
FRACTIONS = np.asarray(
    [
        0,
        1 / 512,
        1 / 256,
        1 / 3,
        0.5,
        0.7,
        1 - 1 / 256,
        1 - 1 / 512,
        2**-15,
        1.5 * 2**-16,
        1 - 2**-17,
    ]
)
HALF = pinned(np.asarray([0.5]))


def keys(seed: int = 0):
    """One a step."""
    return [jax.random.fold_in(jax.random.key(seed), step) for step in range(STEPS)]


def noise(quantizer: Quantizer, step_keys, one_key: bool = False) -> np.ndarray:
    """±1 where an element halfway was rounded up or down; 0 at the pinned elements."""
    return (2 * revealed(HALF, quantizer, step_keys, one_key) - 1) * informative()


@pytest.fixture(scope="module")
def half() -> np.ndarray:
    return noise(Quantizer(rounding="stochastic"), keys())


def correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Pearson's r of two fields of noise of mean 0 and variance 1."""
    both = (one != 0) & (other != 0)
    return float(np.sum(one * other) / np.sum(both))


def largest_pair(fields: np.ndarray) -> float:
    """The largest |r| between any two of `fields`, along their first axis."""
    flat = fields.reshape(len(fields), -1)
    return max(abs(correlation(a, b)) for i, a in enumerate(flat) for b in flat[:i])


def largest_lag(fields: np.ndarray) -> float:
    """The largest |r| between elements of a field any distance apart, pooled over fields.

    By way of a padded Fourier transform, all distances at once; of those, the ones with at least
    a quarter of the elements left to compare.
    """
    shape = (2 * SIZE, 2 * SIZE)

    def autocorrelation(x):
        return np.fft.irfft2((np.abs(np.fft.rfft2(x, shape)) ** 2).sum(axis=0), shape)

    fields = fields.reshape(-1, *fields.shape[-2:])
    sums, counts = autocorrelation(fields), autocorrelation(np.abs(fields))
    compared = counts > 0.25 * counts.max()
    r = np.where(compared, sums, 0) / np.maximum(counts, 1)
    r[0, 0] = 0
    return float(np.abs(r).max())


@pytest.mark.parametrize("bits", [8, 16, 32])
def test_the_mean_is_the_fraction_floored_to_the_bits(bits):
    """Within five standard errors; exactly 0 for a fraction below the last bit."""
    dy = pinned(FRACTIONS)
    up = revealed(dy, Quantizer(rounding="stochastic", bits=bits), keys(bits))
    inner = dy[16:, 16:] - 2
    for fraction in np.unique(inner[informative()]):
        chosen = up[..., informative() & (inner == fraction)]
        expected = np.floor(2.0**bits * np.float64(fraction)) / 2.0**bits
        for copy, values in zip(COPIES, chosen, strict=True):
            error = 5 * np.sqrt(expected * (1 - expected) / values.size)
            assert abs(values.mean() - expected) <= error, f"{copy}: f = {fraction}"


def test_copies_steps_and_layers_are_uncorrelated(half):
    """|r| < 0.02, which for the 4e4 elements and more of each pair is at least four sigmas."""
    assert half.shape == (len(COPIES), STEPS, LAYERS, SIZE - 16, SIZE - 16)
    assert abs(correlation(half[0], half[1])) < 0.02
    assert abs(correlation(half[0], np.swapaxes(half[1], -1, -2))) < 0.02
    for copy in half:
        assert largest_pair(copy) < 0.02
        assert largest_pair(np.swapaxes(copy, 0, 1)) < 0.02


def test_two_runs_are_uncorrelated(half):
    other = noise(Quantizer(rounding="stochastic"), keys(seed=1))
    assert abs(correlation(half[0], other[0])) < 0.02
    assert abs(correlation(half[1], other[1])) < 0.02


@pytest.mark.parametrize("copy", range(2), ids=COPIES)
def test_neighbours_at_any_distance_are_uncorrelated(half, copy):
    """Along rows, columns and slantwise, so noise repeated in tiles would show as well."""
    assert largest_lag(half[copy]) < 0.02


def test_the_noise_is_noise(half):
    """As many up as down in every field: mean 0 within five standard errors."""
    means = half.sum(axis=(-1, -2)) / np.count_nonzero(half, axis=(-1, -2))
    assert np.abs(means).max() < 5 / np.sqrt(np.count_nonzero(half[0, 0, 0]))


def test_a_reused_key_would_be_seen():
    """The proof that the tests above can fail: one key for all layers, then for all steps."""
    layers = noise(Quantizer(rounding="stochastic"), keys()[:1], one_key=True)
    assert largest_pair(np.swapaxes(layers[0], 0, 1)) == 1
    steps = noise(Quantizer(rounding="stochastic"), [keys()[0]] * 2)
    assert largest_pair(steps[0]) == 1


def test_rounding_to_nearest_would_be_seen():
    """2.5 goes to the even code 2, always: no noise, and the correlations say so."""
    nearest = noise(Quantizer(), keys()[:1])
    assert np.all(nearest[..., informative()] == -1)
    assert largest_lag(nearest[0]) == pytest.approx(1)

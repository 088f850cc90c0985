"""Every code, every midpoint and its two float32 neighbours, and every block scale.

To see elements alone, blocks are pinned: each holds the format's largest value, so its scale is
exactly 1 and what is left is the rounding of the elements.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nvfp4_jax import Quantizer
from tests.oracle import scales as oracle_scales

from .compare import assert_codes, bits, compiled
from .inputs import FLT_MAX, element_of, positive_codes, probes

PINNED = [
    (Quantizer("nvfp4"), 16),
    (Quantizer("mxfp4"), 32),
    (Quantizer("mxfp8_e4m3"), 32),
    (Quantizer("mxfp8_e5m2"), 32),
    (Quantizer("fp8_e4m3"), 128),
    (Quantizer("fp8_e5m2", "1x128"), 128),
    (Quantizer("fp8_e4m3", "tensor", scale="power_of_two"), 128),
]


def pinned(quantizer: Quantizer, block: int, values: np.ndarray) -> np.ndarray:
    """`values` in rows of one block each, whose first element makes the scale 1."""
    largest = positive_codes(element_of(quantizer.format)).max()
    padded = np.resize(values, -(-values.size // (block - 1)) * (block - 1))
    rows = padded.reshape(-1, block - 1)
    x = np.concatenate([np.full((len(rows), 1), largest), rows], axis=1).astype(np.float32)
    if quantizer.format == "nvfp4":  # a tensor with amax 6 * 448 has the scale 1
        outlier = np.zeros((1, block), np.float32)
        outlier[0, 0] = 2688
        x = np.concatenate([x, outlier])
    return x


@pytest.mark.parametrize(("quantizer", "block"), PINNED, ids=str)
def test_every_code_and_midpoint(quantizer, block):
    element = element_of(quantizer.format)
    x = pinned(quantizer, block, probes(element))
    q = assert_codes(x, quantizer)
    rows = len(x) - 1 if quantizer.format == "nvfp4" else len(x)
    assert_same = np.testing.assert_array_equal
    assert_same(bits(np.asarray(q.data))[:rows], bits(x[:rows].astype(element)))


@pytest.mark.parametrize("width", [8, 16, 32])
@pytest.mark.parametrize("format", ["nvfp4", "mxfp8_e4m3", "mxfp8_e5m2"])
def test_every_code_and_midpoint_rounded_stochastically(format, width):
    quantizer = Quantizer(format, rounding="stochastic", bits=width)
    x = pinned(quantizer, {"nvfp4": 16}.get(format, 32), probes(element_of(format)))
    assert_codes(x, quantizer, key=jax.random.key(width))


def test_every_e4m3_block_scale():
    """Block maxima that ask for each E4M3 scale, for the midpoint to the next, and beside it."""
    scales = probes(np.dtype(element_of("mxfp8_e4m3")))
    scales = scales[scales >= 0]
    maxima = np.concatenate([scales, np.nextafter(scales, np.float32(0))])
    fill = np.linspace(-1, 1, 15, dtype=np.float32)
    x = np.concatenate([np.ones(1, np.float32), fill]) * (6 * maxima[:, None]).astype(np.float32)
    x[-1, 0] = 2688
    x = np.clip(x, -2688, 2688)
    q = assert_codes(x, Quantizer("nvfp4"))
    met = np.unique(np.asarray(q.block_scale).astype(np.float32))
    np.testing.assert_array_equal(met, positive_codes(element_of("mxfp8_e4m3")))
    for factor in (1e-3, 0.77, 3e4):  # and where the scale of the tensor is no power of two
        assert_codes(x * np.float32(factor), Quantizer("nvfp4"))


def ulps_around(x: np.ndarray, reach: int) -> np.ndarray:
    """Each positive float32 and its `reach` neighbours on both sides, along a new last axis."""
    steps = np.arange(-reach, reach + 1, dtype=np.int32)
    return (x.astype(np.float32).view(np.int32)[..., None] + steps).view(np.float32)


@pytest.mark.parametrize("seed", range(4))
def test_scales_and_elements_an_ulp_from_a_tie(seed):
    """The order of multiplications shows here: S * (1/6) first, and e from the rounded scale.

    Under a tensor maximum of any mantissa, block maxima that bring the scale to within three ulp
    of each midpoint of E4M3, and in those blocks elements within an ulp of the midpoints of E2M1.
    """
    amax = np.float32(np.random.default_rng(seed).uniform(1, 2) * 10.0 ** (seed - 2))
    encode = np.float32(2688) / amax
    values = positive_codes(element_of("mxfp8_e4m3"))
    middles = (values[1:] + values[:-1])[:-1] / 2
    maxima = ulps_around(middles / (encode * np.float32(1 / 6)), 3).reshape(-1)
    scales, multipliers = oracle_scales.nvfp4(maxima, amax)
    ties = np.asarray([0.25, 0.75, 1.25, 1.75, 2.5], np.float32)
    elements = ulps_around(ties / multipliers[:, None], 1).reshape(len(maxima), -1)
    elements = np.where(scales[:, None] == 0, 0, np.minimum(elements, maxima[:, None]))
    x = np.concatenate([maxima[:, None], elements], axis=1).astype(np.float32)
    assert x.shape[1] == 16
    assert np.unique(scales).size > 120
    assert_codes(np.concatenate([x, np.full((1, 16), amax)]), Quantizer("nvfp4"))


@pytest.mark.parametrize("scale", ["up", "floor"])
@pytest.mark.parametrize("format", ["mxfp4", "mxfp8_e4m3", "mxfp8_e5m2"])
def test_every_e8m0_block_scale(format, scale):
    """Maxima at every power of two, at the largest element times it, and one ulp to both sides."""
    powers = np.ldexp(np.float32(1), np.arange(-114, 128))
    largest = np.float32(positive_codes(element_of(format)).max())
    with np.errstate(over="ignore"):
        tops = np.concatenate([powers, powers * (largest / 2 ** np.floor(np.log2(largest)))])
    maxima = np.concatenate(
        [tops, np.nextafter(tops, np.float32(0)), np.nextafter(tops, FLT_MAX)]
    ).astype(np.float32)
    x = maxima[:, None] * np.linspace(1, -0.9, 32, dtype=np.float32)
    q = assert_codes(x, Quantizer(format, scale=scale))
    assert np.unique(np.asarray(q.block_scale).view(np.uint8)).size > 220


@pytest.mark.parametrize("length", [1, 15, 16, 17, 31, 33])
def test_the_last_block_of_any_length(length):
    x = np.random.default_rng(0).normal(size=(2, length)).astype(np.float32)
    q = compiled(Quantizer("nvfp4"), -1)(jnp.asarray(x), None)
    assert q.block_scale.shape == (2, -(-length // 16))
    assert_codes(x, Quantizer("nvfp4"), q=q)

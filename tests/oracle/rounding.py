"""Rounding to an element format, to nearest by ml_dtypes' cast and stochastically by hand."""

from __future__ import annotations

import numpy as np

from .formats import ELEMENT


def nearest(y: np.ndarray, element: np.dtype) -> np.ndarray:
    """The nearest code, ties to the even one, of a clipped float32 `y`."""
    largest = np.float32(ELEMENT[element][0])
    return np.clip(y, -largest, largest).astype(element)


def gap(magnitude: np.ndarray, element: np.dtype) -> np.ndarray:
    """Distance of neighbouring codes in the binade of `magnitude`."""
    _, mantissa_bits, smallest_normal, _ = ELEMENT[element]
    _, exponent = np.frexp(magnitude)  # magnitude = m * 2^exponent, m in [0.5, 1)
    return np.ldexp(np.float32(1), np.maximum(exponent - 1, smallest_normal) - mantissa_bits)


def stochastic(y: np.ndarray, u: np.ndarray, element: np.dtype) -> np.ndarray:
    """floor(|y| / gap + u) * gap with the sign of y: up with the probability of the remainder."""
    largest = np.float32(ELEMENT[element][0])
    magnitude = np.abs(np.clip(y, -largest, largest))
    step = gap(magnitude, element)
    rounded = np.floor(magnitude / step + u.astype(np.float32)) * step
    signed = np.copysign(np.minimum(rounded, largest), y)
    codes = signed.astype(element)
    assert np.all((codes.astype(np.float32) == signed) | np.isnan(signed)), "a code, exactly"
    return codes

"""Tensors that have broken quantizers: ties, subnormal scales, outliers, the ends of float32."""

from __future__ import annotations

import ml_dtypes
import numpy as np

from tests.oracle.formats import ELEMENT, FORMAT

FLT_MAX = np.finfo(np.float32).max


def element_of(format: str) -> np.dtype:
    return FORMAT[format][0]


def positive_codes(element: np.dtype) -> np.ndarray:
    """The non-negative finite values of an element format, ascending."""
    bits = np.arange(8 if element.itemsize == 1 and ELEMENT[element][0] == 6 else 128)
    values = bits.astype(np.uint8).view(element).astype(np.float32)
    return values[np.isfinite(values)]


def probes(element: np.dtype) -> np.ndarray:
    """Every code, every midpoint, and both float32 neighbours of each midpoint, both signs."""
    values = positive_codes(element)
    middles = (values[1:] + values[:-1]) / 2
    near = np.concatenate(
        [values, middles, np.nextafter(middles, np.float32(0)), np.nextafter(middles, FLT_MAX)]
    )
    return np.concatenate([near, -near]).astype(np.float32)


def ties(rng, shape, element):
    """Codes and midpoints under scales that are powers of two, where ties stay ties."""
    values = probes(element)
    largest = ELEMENT[element][0]
    x = rng.choice(values, shape)
    x = np.where(rng.random(shape) < 0.2, np.float32(largest), x)
    if largest == 6.0:
        x.reshape(-1)[0] = 2688.0  # the NVFP4 tensor scale becomes 1
    return x * np.float32(2.0**-3)


def rows_apart(rng, shape):
    """Rows of 1e-6 beside rows of 1: E4M3 scales become subnormal, and zero."""
    x = rng.normal(size=shape).astype(np.float32)
    powers = np.float32(10.0) ** rng.choice([-7, -6, -5, -3, 0], shape[0]).astype(np.float32)
    powers[0] = 1
    return x * powers.reshape(-1, *[1] * (len(shape) - 1))


def zero_blocks(rng, shape):
    x = rng.normal(size=shape).astype(np.float32)
    x.reshape(-1)[: x.size // 2] = 0
    return x


def scaled_to(rng, shape, amax):
    x = rng.normal(size=shape).astype(np.float32)
    with np.errstate(over="ignore"):
        return np.clip(x / np.abs(x).max() * np.float32(amax), -FLT_MAX, FLT_MAX)


def tiny(rng, shape, format, rht=0):
    """Just above the range that XLA's CPU backend flushes; nothing in it is subnormal itself.

    fp8's scale amax / max is kept in FP32 and must not be subnormal: there the range ends higher.
    A rotation makes small numbers out of large ones: there it must end higher still.
    """
    amax = 64 * 2.0**-126 * ELEMENT[element_of(format)][0] if format.startswith("fp8") else 3.3e-35
    amax = max(amax, 1e-30 if rht else 0)
    x = scaled_to(rng, shape, amax)
    return np.where(np.abs(x) < amax / 64, np.float32(0), x)


def outliers(rng, shape):
    x = rng.normal(size=shape).astype(np.float32)
    return np.where(rng.random(shape) < 0.02, x * np.float32(1000), x)


def tensors(
    format: str, shape: tuple[int, ...], rht: int = 0, seed: int = 0
) -> dict[str, np.ndarray]:
    """One float32 tensor of each kind, for a format and the length of a rotation before it."""
    rng = np.random.default_rng(seed)
    element = element_of(format)
    tied = ties(rng, shape, element)
    return {
        "normal": rng.normal(size=shape).astype(np.float32),
        "heavy tails": rng.standard_t(1.2, size=shape).astype(np.float32),
        "log-normal": np.exp(rng.normal(size=shape) * 3).astype(np.float32),
        "outliers": outliers(rng, shape),
        "ties": tied,
        "above ties": np.nextafter(tied, np.float32(FLT_MAX)),
        "below ties": np.nextafter(tied, np.float32(-FLT_MAX)),
        "rows apart": rows_apart(rng, shape),
        "gradient": rng.normal(size=shape).astype(np.float32) * np.float32(1e-5),
        "zeros": np.zeros(shape, np.float32),
        "zero blocks": zero_blocks(rng, shape),
        "near overflow": scaled_to(rng, shape, FLT_MAX),
        "tiny": tiny(rng, shape, format, rht),
        "uniform": rng.random(shape).astype(np.float32),
    }


def cast(x: np.ndarray, dtype: str) -> np.ndarray:
    """To bfloat16, float16 or float32, at most the largest finite value of it."""
    target = np.dtype({"bfloat16": ml_dtypes.bfloat16}.get(dtype, dtype))
    largest = float(ml_dtypes.finfo(target).max)
    return np.clip(x, -largest, largest).astype(target)

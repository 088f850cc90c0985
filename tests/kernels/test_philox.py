"""The generator inside the kernels is the package's and the oracle's."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from nvfp4_jax import philox
from tests.oracle import philox as oracle

from .interpreter import Launch

CHECK = [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]


def run(interpreter, kernel, inputs, output, **meta):
    launch = Launch(
        "tests.kernels.philox_kernel", kernel, inputs, (output,), False, grid=1, meta=meta
    )
    (result,) = interpreter(launch)
    return result


def test_ten_rounds(interpreter):
    random = np.random.default_rng(0)
    counter = random.integers(0, 2**32, (4, 16), dtype=np.uint32)
    counter[:, 0] = 0
    for key in (np.zeros(2, np.uint32), np.asarray([0xFFFFFFFF, 0x9E3779B9], np.uint32)):
        got = run(interpreter, "words_kernel", (counter, key), ((4, 16), np.dtype(np.uint32)), N=16)
        np.testing.assert_array_equal(got.T, oracle.philox4x32(counter.T, key))
        words = philox.philox4x32(tuple(jnp.asarray(key)), tuple(jnp.asarray(counter)))
        np.testing.assert_array_equal(got, np.stack(words))
        if not key.any():
            np.testing.assert_array_equal(got[:, 0], CHECK)


@pytest.mark.parametrize("bits", [8, 16, 32])
def test_each_element_gets_the_bits_of_its_place(interpreter, bits):
    key, row, column = np.asarray([3, 4], np.uint32), 2**31 + 5, 48
    place = np.asarray([row, column], np.uint32)
    got = run(
        interpreter,
        "fractions_kernel",
        (place, key),
        ((4, 32), np.dtype(np.float32)),
        BITS=bits,
        ROWS=4,
        COLUMNS=32,
    )
    rows, columns = row + np.arange(4)[:, None], column + np.arange(32)[None, :]
    want = oracle.uniform_at(rows, columns, key, bits)
    np.testing.assert_array_equal(got, want * np.float32(2.0**-125))

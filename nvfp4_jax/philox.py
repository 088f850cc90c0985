"""Random bits that depend on nothing but a key and an element's place.

Stochastic rounding must give the same codes on one device and on eight, in XLA and in a fused
kernel. A counter-based generator makes that possible: Philox4x32-10 maps (key, counter) to four
32-bit words, and the counter here is the element's position in the whole, un-sharded tensor.

    counter = (column // E, row low, row high, stream)      E = 128 / bits elements share a call

Element j of a call takes byte j % 4 (0 the lowest) of word j // 4 for 8 bits, half j % 2 of word
j // 2 for 16 bits, or word j for 32.

Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, UInt, UInt32

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_DTYPES = {8: jnp.uint8, 16: jnp.uint16, 32: jnp.uint32}

Words = tuple[Array, Array, Array, Array]


def philox4x32(key: tuple[Array, Array], counter: Words) -> Words:
    """Ten rounds of Philox on uint32 words that broadcast together.

    The all-zero key and counter give 6627e8d5 e169c58d bc57ac4c 9b00dbd8.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    m0, m1 = _MULTIPLIERS
    for _ in range(_ROUNDS):
        c0, c1, c2, c3 = (
            _high_product(c2, m1) ^ c1 ^ k0,
            c2 * jnp.uint32(m1),
            _high_product(c0, m0) ^ c3 ^ k1,
            c0 * jnp.uint32(m0),
        )
        k0, k1 = k0 + jnp.uint32(_KEY_STEPS[0]), k1 + jnp.uint32(_KEY_STEPS[1])
    return c0, c1, c2, c3


def _high_product(a: Array, m: int) -> Array:
    """The upper 32 bits of a 64-bit product.

    `lax.mulhi` says the same in one operation, but XLA's partitioner (jaxlib 0.11.2) cannot
    convert it, and this must run sharded. Nothing of 64 bits leaves here.
    """
    with jax.enable_x64(True):
        wide = lax.convert_element_type(a, jnp.uint64)
        product = lax.mul(wide, lax.full_like(wide, m))
        upper = lax.shift_right_logical(product, lax.full_like(product, 32))
        return lax.convert_element_type(upper, jnp.uint32)


def key_words(key: Array) -> tuple[UInt32[Array, ""], UInt32[Array, ""]]:
    """The first two 32-bit words of a typed (`jax.random.key`) or raw key.

    Raises:
      ValueError: `key` is an array of keys, or not a key at all.
    """
    data = jax.random.key_data(key) if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else key
    if data.dtype != jnp.uint32 or data.ndim != 1 or data.shape[0] < 2:
        raise ValueError(
            f"expected one PRNG key, got {key.dtype} of shape {key.shape}; "
            "pass jax.random.key(seed), and one key at a time"
        )
    return data[0], data[1]


def random_bits(
    key: Array, shape: tuple[int, ...], bits: int = 8, stream: int = 0
) -> UInt[Array, "..."]:
    """Uniform `bits`-bit integers for a tensor of `shape`, as (rows, columns of its last axis).

    Args:
      key: typed or raw key.
      shape: shape of the whole tensor; () counts as one element.
      bits: 8, 16 or 32; the result is uint8, uint16 or uint32.
      stream: the fourth word of the counter.

    Raises:
      ValueError: bits is another number, or there are 2^32 rows or more.
    """
    if bits not in _DTYPES:
        raise ValueError(f"bits = {bits}: 8, 16 or 32 random bits an element are defined")
    *lead, columns = shape or (1,)
    if math.prod(lead) >= 2**32:
        raise ValueError(f"shape {shape} has 2^32 rows or more; reshape it to longer rows")
    calls = -(-columns // (128 // bits))
    grid = (*lead, calls)
    zero = jnp.zeros(grid, jnp.uint32)
    counter = (_iota(grid, len(lead)), _row_index(grid), zero, zero + jnp.uint32(stream))
    # Without the barrier XLA repeats the ten rounds for each of the four words.
    words = lax.optimization_barrier(philox4x32(key_words(key), counter))
    small = lax.bitcast_convert_type(jnp.stack(words, axis=-1), _DTYPES[bits])
    return small.reshape(*lead, calls * (128 // bits))[..., :columns].reshape(shape)


def _iota(grid, axis):
    return lax.broadcasted_iota(jnp.uint32, grid, axis)


def _row_index(grid):
    """Flat index over all axes but the last."""
    row = jnp.zeros(grid, jnp.uint32)
    for axis in range(len(grid) - 1):
        row = row * jnp.uint32(grid[axis]) + _iota(grid, axis)
    return row

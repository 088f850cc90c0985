"""Two 4-bit codes in a byte, the even element in the low nibble.

JAX stores a float4 array with one element a byte on most backends; files, kernels and the wire
want two. A code is sign (bit 3), exponent (bits 2, 1) and mantissa (bit 0): 1.5 is 0b0011.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, UInt8

from nvfp4_jax.formats import E2M1


def pack(codes: Array) -> UInt8[Array, "..."]:
    """float4_e2m1fn codes (..., n) as bytes (..., ceil(n / 2)).

        byte[i] = code[2 i] + 16 code[2 i + 1]

    An odd n leaves the last high nibble zero.

    Raises:
      TypeError: `codes` is not a float4_e2m1fn array of at least one axis.
    """
    if codes.dtype != E2M1.dtype or codes.ndim == 0:
        raise TypeError(
            f"pack takes float4_e2m1fn codes with an axis, got {codes.dtype} of shape "
            f"{codes.shape}; pass the .data of a quantized tensor"
        )
    nibbles = lax.bitcast_convert_type(codes, jnp.uint4).astype(jnp.uint8)
    odd = codes.shape[-1] % 2
    nibbles = jnp.pad(nibbles, [(0, 0)] * (codes.ndim - 1) + [(0, odd)])
    pairs = nibbles.reshape(*codes.shape[:-1], -1, 2)
    return pairs[..., 0] | (pairs[..., 1] << 4)


def unpack(packed: UInt8[Array, "..."], length: int | None = None) -> Array:
    """The inverse of `pack`: float4_e2m1fn codes (..., length).

    Args:
      packed: bytes (..., m).
      length: how many codes a row held, 2 m or 2 m - 1; 2 m if left out.

    Raises:
      TypeError: `packed` is not a uint8 array of at least one axis.
      ValueError: `length` does not fit the bytes.
    """
    if packed.dtype != jnp.uint8 or packed.ndim == 0:
        raise TypeError(f"unpack takes uint8 with an axis, got {packed.dtype} of {packed.shape}")
    full = 2 * packed.shape[-1]
    length = full if length is None else length
    if length not in (full, full - 1):
        raise ValueError(
            f"length = {length}: {packed.shape[-1]} bytes a row hold {full} codes, or {full - 1}"
        )
    nibbles = jnp.stack([packed & jnp.uint8(15), packed >> 4], axis=-1)
    nibbles = nibbles.reshape(*packed.shape[:-1], full)[..., :length]
    return lax.bitcast_convert_type(nibbles.astype(jnp.uint4), E2M1.dtype)

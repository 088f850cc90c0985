"""A tensor and what is asked of it, as the fused kernels see them.

To a kernel every tensor is (batch, rows, columns) and a request is a `Copy`: an axis, square or
not, rotated or not, with so many random bits an element.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float32, UInt32

from nvfp4_jax import hadamard, philox
from nvfp4_jax.kernels.capability import capability
from nvfp4_jax.kernels.request import Request
from nvfp4_jax.kernels.tiles import BLOCK, Copy
from nvfp4_jax.kernels.xla import exact_float32


def copy_of(request: Request, ndim: int) -> Copy:
    """The kernel's word for a request on a tensor of so many axes."""
    quantizer = request.quantizer
    return Copy(
        axis="columns" if request.axis % ndim == ndim - 1 else "rows",
        square=quantizer.block == (BLOCK, BLOCK),
        rht=bool(quantizer.rht),
        bits=quantizer.bits if quantizer.rounding == "stochastic" else 0,
    )


def as_seen(x: Array, dtype: DTypeLike | None) -> tuple[Array, bool]:
    """(x as the kernel reads it, whether it rounds it to bf16 as it reads)."""
    if dtype is not None and jnp.dtype(dtype) == jnp.bfloat16 and x.dtype == jnp.float32:
        return x, True
    x = x if dtype is None else x.astype(dtype)
    return (x if x.dtype in (jnp.bfloat16, jnp.float32) else exact_float32(x)), False


def view(x: Array, requests: Sequence[Request]) -> Array:
    """`x` as (batch, rows, columns), the blocks along one of the last two."""
    axis = min(min(r.axis % x.ndim for r in requests), max(x.ndim - 2, 0))
    before, after = x.shape[:axis], x.shape[axis + 1 :]
    rows = (x.shape[axis], math.prod(after)) if x.ndim > 1 else (1, x.shape[0])
    return x.reshape(math.prod(before), *rows)


def signs_of(requests: Sequence[Request]) -> Float32[Array, "16"]:
    """The rotation's signs, of which two requests have the same."""
    signs = [r.signs for r in requests if r.signs is not None]
    return signs[0] if signs else hadamard.fixed_signs()


def keys_of(requests: Sequence[Request]) -> UInt32[Array, "copies 2"]:
    """Two words a request; not read where there is no key."""
    # Unequal, since XLA runs a kernel to fill in equal numbers.
    unread = np.arange(2 * len(requests), dtype=np.uint32).reshape(-1, 2)
    if all(r.key is None for r in requests):
        return jnp.asarray(unread)
    words = [philox.key_words(r.key) if r.key is not None else unread[0] for r in requests]
    return jnp.stack([jnp.stack([jnp.uint32(word) for word in pair]) for pair in words])


def target() -> int:
    """The GPU a kernel is for as Triton spells it: 90 for compute capability 9.0."""
    major, minor = capability() or (0, 0)
    return 10 * major + minor

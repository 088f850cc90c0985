"""The fused kernels one by one, below the public names, to be timed alone.

Imported only where they run: they need Triton.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from nvfp4_jax import hadamard
from nvfp4_jax.bench.cases import Case
from nvfp4_jax.kernels import launch
from nvfp4_jax.kernels.launch import Copy
from nvfp4_jax.quantizer import Quantizer


def amax(case: Case, x: jax.Array) -> jax.Array:
    """The bits of the largest magnitude of each copy, int32 (copies,)."""
    return launch.amax_bits(x[None], _copies(case), hadamard.fixed_signs())


def kernel(case: Case, x: jax.Array, amax: jax.Array) -> tuple[jax.Array, ...]:
    """Operands, or codes and scales, with the amax given."""
    copies = _copies(case)
    keys = jnp.arange(1, 1 + 2 * len(copies), dtype=jnp.uint32).reshape(-1, 2)
    rest = (amax, hadamard.fixed_signs(), keys, jnp.zeros(3, jnp.uint32), x.shape[0])
    if case.kind == "pack":
        return launch.packed(x[None], copies[0], *rest)
    return launch.operands(x[None], copies, *rest)


def _copies(case: Case) -> tuple[Copy, ...]:
    return tuple(_copy(quantizer, axis) for quantizer, axis in case.copies)


def _copy(quantizer: Quantizer, axis: int) -> Copy:
    return Copy(
        axis="columns" if axis == -1 else "rows",
        square=quantizer.granularity == "16x16",
        rht=bool(quantizer.rht),
        bits=quantizer.bits if quantizer.rounding == "stochastic" else 0,
    )

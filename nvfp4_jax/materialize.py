"""Where XLA's CPU backend must be told not to fuse.

Fusing is recomputing: an expression used by sixteen outputs is evaluated sixteen times if it is
fused into them. The CPU backend fuses through butterflies and transposes products of bf16 into
forms it cannot run. A barrier makes it store the value; other backends see nothing.
"""

from __future__ import annotations

import jax
from jax import lax


def store_on_cpu[T](tree: T) -> T:
    """The arrays of `tree`, stored before use when running on a CPU; elsewhere as they are."""
    leaves, structure = jax.tree.flatten(tree)
    stored = lax.platform_dependent(
        *leaves, cpu=lambda *x: lax.optimization_barrier(x), default=lambda *x: x
    )
    return jax.tree.unflatten(structure, stored)

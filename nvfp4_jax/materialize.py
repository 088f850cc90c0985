"""Where XLA's CPU backend must be told not to fuse.

Fusing is recomputing: an expression used by sixteen outputs is evaluated sixteen times if it is
fused into them, and the CPU backend fuses through butterflies. A barrier makes it store the value;
other backends see nothing.
"""

from __future__ import annotations

from jax import lax
from jaxtyping import Array


def store_on_cpu(x: Array) -> Array:
    """`x`, stored before use when running on a CPU; elsewhere as it is."""
    return lax.platform_dependent(x, cpu=lax.optimization_barrier, default=lambda x: x)

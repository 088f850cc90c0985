"""How XLA may split the fused scan over devices: by the batch and by groups of heads.

Heads h = g r are whole groups: r heads of one share B and C. See `splitting`.
"""

from __future__ import annotations

from collections.abc import Callable

from nvfp4_jax.models.splitting import splitting

_X, _DT, _A, _B, _STATE = "b.h.", "b.h", "h", "b.g.", "bh.."
_DOCUMENTS, _VECTOR, _STATES, _ROWS = "b.", "bh.", "b.h..", "bh"

_FORWARD = (
    (_X, _DT, _A, _B, _B, _A, _DOCUMENTS, _STATE),
    (_X, _STATE, _VECTOR, _VECTOR, _STATES),
)
_BACKWARD = (
    (_X, _A, _B, _B, _A, _DOCUMENTS, _VECTOR, _VECTOR, _STATES, _X, _STATE),
    (_X, _DT, _ROWS, _B, _B, _ROWS, _STATE),
)


def forward(fn: Callable) -> Callable:
    """`fn` with the arguments and results of `ssd_triton`'s forward pass."""
    return splitting(fn, *_FORWARD, groups_of=3)


def backward(fn: Callable) -> Callable:
    """The same for its backward pass."""
    return splitting(fn, *_BACKWARD, groups_of=2)

"""A linear under `jax.vmap` that still sees one batch: what is mapped is quantized together.

Mapped in the usual sense, examples know nothing of each other: each would have a tensor scale and
random bits of its own. To have the gradient of each part of a batch by itself, and yet the numbers
of the whole, the parts must be one tensor to every quantizer, and come apart only where the
weight's gradient is summed over tokens:

    y[p], dx[p]   the rows of part p of the whole batch's y and dx
    dw[p]         the sum over the tokens of part p alone, of operands quantized in the whole

The sum of all dw[p] is the whole batch's dw but for the order of its FP32 sums; and that order is
then the caller's to choose (see `training.ordered`).

The weight's features, in or out, may be cut in parts besides (`FeatureParts`), as tensor
parallelism cuts them: whichever GEMM contracts them adds up parts in pairs. Which axis of which
GEMM that is:

    features    Fprop  x w       Dgrad  dy wᵀ    Wgrad  xᵀ dy
    in          contracted       columns         rows
    out         columns          contracted      columns
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
from jax.custom_batching import custom_vmap
from jaxtyping import Array

from nvfp4_jax.ordered_product import Cuts

Fprop = Callable[..., Array]
Gradients = Callable[..., tuple[Array, Array]]


@dataclass(frozen=True)
class FeatureParts:
    """Equal parts, a power of two, of a weight's features `in` or `out`."""

    axis: Literal["in", "out"]
    parts: int


class GemmCuts(NamedTuple):
    """How each GEMM of a linear is cut."""

    fprop: Cuts
    dgrad: Cuts
    wgrad: Cuts


def gemm_cuts(parts: int, features: FeatureParts | None) -> GemmCuts:
    """The table above, with rows (Fprop, Dgrad) and tokens (Wgrad) in `parts`."""
    n = 1 if features is None else features.parts
    inward, outward = (n, 1) if features is not None and features.axis == "in" else (1, n)
    return GemmCuts(
        fprop=Cuts(rows=parts, columns=outward, sums=inward),
        dgrad=Cuts(rows=parts, columns=inward, sums=outward),
        wgrad=Cuts(rows=inward, columns=outward, sums=parts),
    )


def linear_together(fprop: Fprop, gradients: Gradients) -> Fprop:
    """`fprop` with `gradients`, as one function that maps over parts of a batch as said above.

    Args:
      fprop: (x, w, key, amax, parts=n) to y; the first axis of x and y is rows, and how a row is
        computed may depend on the size of the n parts (left out: one), not on their number.
      gradients: (x, w, dy, key, amax, parts=n) to (dx, dw); n parts of the rows have a dw each, on
        a new first axis, without it there is one of its own shape.

    Raises, when it is mapped:
      ValueError: over anything but x alone.
    """

    @custom_vmap
    def forward(x, w, key, amax):
        return fprop(x, w, key, amax)

    @forward.def_vmap
    def _(parts, mapped, x, w, key, amax):
        _check_mapped(mapped)
        return _apart(parts, fprop(_joined(x), w, key, amax, parts=parts)), True

    @custom_vmap
    def backward(x, w, dy, key, amax):
        return gradients(x, w, dy, key, amax)

    @backward.def_vmap
    def _(parts, mapped, x, w, dy, key, amax):
        x_mapped, w_mapped, dy_mapped, *rest = mapped
        _check_mapped((x_mapped and dy_mapped, w_mapped, *rest))
        dx, dw = gradients(_joined(x), w, _joined(dy), key, amax, parts=parts)
        return (_apart(parts, dx), dw), (True, True)

    @jax.custom_vjp
    def linear(x, w, key, amax):
        return forward(x, w, key, amax)

    def keep(x, w, key, amax):
        return forward(x, w, key, amax), (x, w, key, amax)

    def pull(kept, dy):
        x, w, key, amax = kept
        return (*backward(x, w, dy, key, amax), None, None)

    linear.defvjp(keep, pull)
    return linear


def _check_mapped(mapped: Any) -> None:
    x, *others = mapped
    if not x or any(jax.tree.leaves(others)):
        raise ValueError(
            "together = True: map over the input alone (jax.vmap with in_axes = None for weights "
            "and keys); weights that differ from part to part have no common gradient"
        )


def _joined(x: Array) -> Array:
    return x.reshape(-1, *x.shape[2:])


def _apart(parts: int, x: Array) -> Array:
    return x.reshape(parts, -1, *x.shape[1:])

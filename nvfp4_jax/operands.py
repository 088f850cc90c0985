"""From a tensor to operands of the GEMMs it takes part in.

A linear's input goes into two GEMMs, its gradient too, and each wants a copy of its own. They are
asked for together, since a kernel that makes both reads the tensor once. Here is also where
randomness gets its place: the layer's key is folded with the GEMM and then with the operand, so
no two copies share bits, and changing one quantizer changes no other's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array

from nvfp4_jax.contraction import Axes, Merged
from nvfp4_jax.kernels.request import Native, Operand, Packed, Request
from nvfp4_jax.kernels.scales import magnitude_bits
from nvfp4_jax.kernels.select import select, select_native
from nvfp4_jax.kernels.xla import exact_float32, to_bf16_values
from nvfp4_jax.precision import GEMMS, OPERANDS, OPERANDS_OF, LinearPrecision
from nvfp4_jax.quantize import signs_for
from nvfp4_jax.quantizer import Quantizer


class Use(NamedTuple):
    """A place in a linear's arithmetic: `Use("wgrad", "grad")`."""

    gemm: str
    operand: str


Amaxes = Mapping[Use, Array]  # the bits of the largest magnitude as a use sees it, where known


class Scaled(NamedTuple):
    """An operand, merged bf16 or native codes, and the FP32 scale its product is to be given."""

    merged: Merged | Native
    scale: Array | None

    @property
    def operand(self) -> Operand:
        """Without its axes, as it is kept."""
        kept = self.merged if isinstance(self.merged, Native) else self.merged.array
        return Operand(kept, self.scale)


def prepare(
    precision: LinearPrecision,
    key: Array | None,
    implementation: str | None,
    uses: Sequence[tuple[Use, Merged]],
    dtype: DTypeLike | None = None,
    amaxes: Amaxes | None = None,
) -> tuple[Scaled, ...]:
    """One tensor, rounded to `dtype`, as each of its uses wants it.

    Args:
      precision: of the linear.
      key: the layer's key.
      implementation: as of `make_dot_general`.
      uses: the merged views are of one and the same array and differ in what they contract.
      dtype: what the tensor is rounded to before anything else; left out, it is as it is.
      amaxes: of the tensor, so rounded, and rotated where the use rotates it; those that are known.
    """
    array = uses[0][1].array
    requests = {
        use: _told(request_for(precision, key, use, view.contract), use, amaxes)
        for use, view in uses
        if quantizer_of(precision, use) is not None
    }
    matrix = uses[0][1].batch is None and array.size > 0
    native = {
        use: request
        for use, request in requests.items()
        if emulated(precision, use.gemm, implementation, matrix) is None
    }
    others = {use: request for use, request in requests.items() if use not in native}
    ready: dict[Use, Operand] = {}
    if native and (kernels := select_native(implementation)) is not None:
        made = kernels.to_native(array, [*native.values()], dtype)
        ready |= zip(native, made, strict=True)
    if others:
        made = select(implementation).to_operands(array, [*others.values()], dtype)
        ready |= zip(others, made, strict=True)
    high = Operand(array.astype(jnp.bfloat16))
    return tuple(scaled(view.axes, ready.get(use, high)) for use, view in uses)


def emulated(
    precision: LinearPrecision, gemm: str, implementation: str | None, matrix: bool = True
) -> str | None:
    """Why a GEMM of this precision is multiplied in bf16; None where it is on 4-bit codes.

    Args:
      precision: of the linear.
      gemm: `fprop`, `dgrad` or `wgrad`.
      implementation: as of `make_dot_general`.
      matrix: whether its operands are matrices, with no batch axis and not empty.
    """
    kernels = select_native(implementation)
    if kernels is None:
        return "no 4-bit tensor cores were chosen here"
    if not matrix:
        return "its operands are batched, or empty"
    uses = (Use(gemm, operand) for operand in OPERANDS_OF[gemm])
    return kernels.emulated(*(quantizer_of(precision, use) for use in uses))


def check_native(
    precision: LinearPrecision, implementation: str | None, matrix: bool = True
) -> None:
    """An implementation for 4-bit products, named, does every quantized GEMM, or this raises.

    Raises:
      ValueError: a GEMM with one bf16 operand, with quantizers it does not do, or of no matrices.
    """
    if implementation is None or select_native(implementation) is None:
        return
    for gemm in GEMMS:
        if getattr(precision, gemm).quantized and (
            reason := emulated(precision, gemm, implementation, matrix)
        ):
            raise ValueError(
                f"implementation = {implementation!r}: {gemm} cannot run on it, {reason}; leave "
                "implementation out, and such a GEMM is emulated in bf16"
            )


def amax_bits(x: Array, dtype: DTypeLike) -> Array:
    """The bits of max |x|, an int32 scalar, with x rounded to `dtype`; NaN and infinity survive."""
    top = jnp.max(magnitude_bits(exact_float32(x)), initial=0)
    if jnp.dtype(dtype) == jnp.float32:
        return top
    rounded = to_bf16_values(lax.bitcast_convert_type(top, jnp.float32))
    return magnitude_bits(rounded)


def weight_amaxes(precision: LinearPrecision, amax: Array | None) -> Amaxes:
    """A weight's amax as its uses see it: its own, unless it is rotated first."""
    if amax is None:
        return {}
    uses = (Use("fprop", "weight"), Use("dgrad", "weight"))
    quantizers = {use: quantizer_of(precision, use) for use in uses}
    return {use: amax for use, q in quantizers.items() if q and q.format == "nvfp4" and not q.rht}


def _told(request: Request, use: Use, amaxes: Amaxes | None) -> Request:
    return request._replace(amax=(amaxes or {}).get(use))


def pack(
    precision: LinearPrecision,
    key: Array | None,
    implementation: str | None,
    use: Use,
    view: Merged,
    dtype: DTypeLike | None = None,
    amaxes: Amaxes | None = None,
) -> Packed:
    """A use's operand at its stored size, to be kept or sent; arguments as of `prepare`."""
    request = _told(request_for(precision, key, use, view.contract), use, amaxes)
    return select(implementation).to_packed(view.array, request, dtype)


def scaled(axes: Axes, operand: Operand) -> Scaled:
    """The operand in the place of the tensor it was made of."""
    if isinstance(operand.array, Native):
        return Scaled(operand.array, operand.scale)
    return Scaled(Merged(operand.array, axes), operand.scale)


def quantizer_of(precision: LinearPrecision, use: Use) -> Quantizer | None:
    """The quantizer of a use; None for bf16."""
    operand = getattr(getattr(precision, use.gemm), use.operand)
    return operand if isinstance(operand, Quantizer) else None


def request_for(precision: LinearPrecision, key: Array | None, use: Use, axis: int) -> Request:
    """What a kernel is asked for: the quantizer, the axis, the folded key and the signs."""
    quantizer = quantizer_of(precision, use)
    assert quantizer is not None
    gemm_key = None if key is None else jax.random.fold_in(key, GEMMS.index(use.gemm))
    signs = signs_for(quantizer, gemm_key)
    if quantizer.rounding == "nearest":
        return Request(quantizer, axis, None, signs)
    assert gemm_key is not None  # make_dot_general has seen to it
    own = jax.random.fold_in(gemm_key, OPERANDS.index(use.operand))
    return Request(quantizer, axis, own, signs)

"""A linear layer is three matrix products, and this is where their precision is decided.

    Fprop   y  = x w        contracts features in
    Dgrad   dx = dy wᵀ      contracts features out
    Wgrad   dw = xᵀ dy      contracts tokens

A 4-bit number is only useful with a scale that its neighbours share, and a scale can be pulled
out of a sum only if everyone in the sum shares it. So blocks lie along the contraction axis, and
since each GEMM contracts another axis, each tensor is quantized twice, differently, each time
from the high-precision tensor and never from its other quantized copy:

    x     along features for Fprop, along tokens for Wgrad
    w     along features in for Fprop, out for Dgrad: 16x16 tiles make both the same values
    dy    along features out for Dgrad, along tokens for Wgrad, with independent random bits

Gradients are rounded stochastically, since a bias of a fraction of a code adds up over steps;
activations and weights are not, since noise there hurts more than bias. Wgrad's operands are
rotated (RHT) so that outliers spread; the rotation cancels in the product.

On hardware without FP4 the operands are rounded to FP4 values and multiplied in bf16 with FP32
accumulation. That is exact: an E2M1 value times an E4M3 scale has 6 significant bits and bf16
holds 8. The FP32 scale of each tensor stays out of the operands and multiplies the product.

All of it is one `jax.custom_vjp` over one function, `_gemm`, called three times. Forward-mode
differentiation (`jax.jvp`, `jax.jacfwd`) raises, as of every custom_vjp.

Source: arXiv 2509.25149, section 4.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array

from nvfp4_jax.axes import explicit_mesh, run_automatic
from nvfp4_jax.contraction import (
    Dims,
    Merged,
    merge,
    operand_dims,
    product_numbers,
    restore,
)
from nvfp4_jax.kernels.blocks import pad_to
from nvfp4_jax.kernels.select import select
from nvfp4_jax.precision import GEMMS, OPERANDS, LinearPrecision, Operand
from nvfp4_jax.quantize import signs_for

DotGeneral = Callable[..., Array]


def make_dot_general(
    linear_precision: LinearPrecision,
    key: Array | None = None,
    implementation: str | None = None,
) -> DotGeneral:
    """A `lax.dot_general` whose three GEMMs run in `linear_precision`.

    The returned function has the signature of `lax.dot_general`, including `out_sharding`; its
    lhs is the layer's input and its rhs the weight, which may stay FP32 under a bf16 input. The
    result has `preferred_element_type`, or the input's dtype; gradients have the dtypes of the
    operands they belong to, so an FP32 weight gets its gradient in FP32, never rounded on the way.

    Two FP32 operands are quantized as FP32. Under a bf16 input, the weight and the incoming
    gradient are rounded to bf16 first, as in mixed-precision training. `"bf16"` operands are cast
    to bf16 in either case.

    Args:
      linear_precision: a quantizer or `"bf16"` for each operand of each GEMM.
      key: randomness of this layer at this step, typed or raw, possibly traced. It is folded with
        the GEMM (fprop 0, dgrad 1, wgrad 2) and then the operand (input 0, weight 1, grad 2). Bits
        go by place in the operand as it is multiplied: (batch,) rows and columns, several axes of
        a kind merged to one.
      implementation: `None` for the best available, or a name.

    Raises:
      ValueError: a key is needed and missing, or the implementation cannot run here. The returned
        function raises on arguments it cannot honour: a `precision` other than the default, or
        operands that are not floats.
    """
    if linear_precision.needs_key and key is None:
        raise ValueError(
            "this precision draws random numbers (stochastic rounding or random signs); "
            "pass key=jax.random.key(...) to make_dot_general"
        )
    select(implementation)

    def dot_general(
        lhs: Array,
        rhs: Array,
        dimension_numbers: Any,
        precision: Any = None,
        preferred_element_type: Any = None,
        *,
        out_sharding: Any = None,
    ) -> Array:
        _check_arguments(lhs, rhs, precision, preferred_element_type)
        dtype = jnp.dtype(preferred_element_type or lhs.dtype)
        numbers = _hashable(dimension_numbers)
        sharding = _output_sharding(lhs, rhs, numbers, out_sharding)
        call = _Call(linear_precision, numbers, dtype, implementation, sharding)
        return _linear(call, lhs, rhs, key)

    return dot_general


@dataclass(frozen=True)
class _Call:
    """What is static about one call; hashable, as custom_vjp's argument that has no gradient."""

    precision: LinearPrecision
    numbers: Any
    dtype: Any
    implementation: str | None
    sharding: Any

    def dims(self, lhs: Array, rhs: Array) -> tuple[Dims, Dims]:
        return operand_dims(self.numbers, lhs.shape, rhs.shape)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _linear(call: _Call, lhs: Array, rhs: Array, key: Array | None) -> Array:
    return _forward(call, lhs, rhs, key)[0]


def _forward(call, lhs, rhs, key):
    """Fprop: y = x w."""
    x_dims, w_dims = call.dims(lhs, rhs)
    shape = _take(lhs, (*x_dims.batch, *x_dims.free)) + _take(rhs, w_dims.free)

    def fprop(lhs, rhs, key):
        rhs = rhs.astype(_rounded_dtype(lhs))
        y = _gemm(call, "fprop", "input", merge(lhs, x_dims), "weight", merge(rhs, w_dims), key)
        return y.reshape(shape).astype(call.dtype)

    y = run_automatic(fprop, explicit_mesh(lhs, rhs), call.sharding, lhs, rhs, key)
    return y, (lhs, rhs, key)


def _backward(call, residuals, dy):
    """Dgrad: dx = dy wᵀ, and Wgrad: dw = xᵀ dy; each quantizes dy for itself."""
    lhs, rhs, key = residuals
    x_dims, w_dims = call.dims(lhs, rhs)
    batch, rows = len(x_dims.batch), len(x_dims.free)
    y_dims = Dims(
        tuple(range(batch)), tuple(range(batch, batch + rows)), tuple(range(batch + rows, dy.ndim))
    )

    def dgrad(dy, lhs, rhs, key):
        dy, rhs = dy.astype(_rounded_dtype(lhs)), rhs.astype(_rounded_dtype(lhs))
        w = merge(rhs, w_dims.swapped())
        dx = _gemm(call, "dgrad", "grad", merge(dy, y_dims), "weight", w, key)
        order = (*x_dims.batch, *x_dims.free, *x_dims.contract)
        return restore(dx, lhs.shape, order).astype(lhs.dtype)

    def wgrad(dy, lhs, rhs, key):
        dy = dy.astype(_rounded_dtype(lhs))
        x = merge(lhs, x_dims.swapped())
        dw = _gemm(call, "wgrad", "input", x, "grad", merge(dy, y_dims.swapped()), key)
        order = (*w_dims.batch, *w_dims.contract, *w_dims.free)
        return restore(dw, rhs.shape, order).astype(rhs.dtype)

    mesh = explicit_mesh(lhs, rhs, dy)
    dx_sharding, dw_sharding = (jax.typeof(a).sharding for a in (lhs, rhs))
    dx = run_automatic(dgrad, mesh, dx_sharding, dy, lhs, rhs, key)
    dw = run_automatic(wgrad, mesh, dw_sharding, dy, lhs, rhs, key)
    return dx, dw, None


_linear.defvjp(_forward, _backward)


def _gemm(
    call: _Call, gemm: str, a_name: str, a: Merged, b_name: str, b: Merged, key: Array | None
) -> Array:
    """One product of two merged operands, each through its own quantizer, in FP32."""
    gemm_key = None if key is None else jax.random.fold_in(key, GEMMS.index(gemm))
    precision = getattr(call.precision, gemm)

    def prepare(name, operand):
        return _operand(getattr(precision, name), operand, gemm_key, name, call.implementation)

    (a, a_scale), (b, b_scale) = prepare(a_name, a), prepare(b_name, b)
    y = _product(*_equally_long(a, b))
    for scale in (a_scale, b_scale):
        y = y if scale is None else y * scale
    return y


def _product(a: Merged, b: Merged) -> Array:
    """bf16 times bf16 with FP32 accumulation and an FP32 result.

    XLA's CPU backend (jaxlib 0.11.2) fails at run time when it folds a transposition before or
    after into such a product, and with some batch axes. Barriers on all sides keep it from doing
    so; with batch axes, vmap's included, the same values are multiplied as FP32.
    """
    numbers = product_numbers(a, b)

    def product(a, b):
        return lax.dot_general(a, b, numbers, preferred_element_type=jnp.float32)

    @jax.custom_batching.custom_vmap
    def product_on_cpu(a, b):
        return lax.optimization_barrier(product(*lax.optimization_barrier((a, b))))

    @product_on_cpu.def_vmap
    def batched(_, in_batched, a, b):
        axes = tuple(0 if is_batched else None for is_batched in in_batched)
        return jax.vmap(partial(_float32_product, numbers), axes)(a, b), True

    on_cpu = product_on_cpu if a.batch is None else partial(_float32_product, numbers)
    return lax.platform_dependent(a.array, b.array, cpu=on_cpu, default=product)


def _float32_product(numbers, a, b):
    a, b = a.astype(jnp.float32), b.astype(jnp.float32)
    return lax.dot_general(a, b, numbers, precision=lax.Precision.HIGHEST)


def _operand(
    precision: Operand, operand: Merged, gemm_key: Array | None, name: str, implementation
) -> tuple[Merged, Array | None]:
    """A bf16 operand and the FP32 scale its product is to be multiplied with."""
    if precision == "bf16":
        return operand.with_array(operand.array.astype(jnp.bfloat16)), None
    key = None
    if precision.rounding == "stochastic":
        assert gemm_key is not None  # make_dot_general has seen to it
        key = jax.random.fold_in(gemm_key, OPERANDS.index(name))
    array, scale = select(implementation).quantize_to_operand(
        operand.array, precision, operand.contract, key, signs_for(precision, gemm_key)
    )
    return operand.with_array(array), scale


def _equally_long(a: Merged, b: Merged) -> tuple[Merged, Merged]:
    """Zeros to even out rotated operands that different blocks padded to different lengths."""
    length = max(a.array.shape[a.contract], b.array.shape[b.contract])

    def padded(operand):
        shape = list(operand.array.shape)
        shape[operand.contract] = length
        return operand.with_array(pad_to(operand.array, tuple(shape)))

    return padded(a), padded(b)


def _rounded_dtype(lhs: Array):
    """What the weight and the gradient are rounded to before anything else."""
    return jnp.float32 if lhs.dtype.itemsize >= 4 else jnp.bfloat16


def _take(x: Array, axes) -> tuple[int, ...]:
    return tuple(x.shape[axis] for axis in axes)


def _hashable(numbers):
    (a, b), (c, d) = numbers
    return (tuple(map(int, a)), tuple(map(int, b))), (tuple(map(int, c)), tuple(map(int, d)))


def _output_sharding(lhs, rhs, numbers, out_sharding):
    """On explicit axes: the result's sharding, as asked for or as lax.dot_general would have it."""
    mesh = explicit_mesh(lhs, rhs)
    if mesh is None:
        if out_sharding is not None:
            raise ValueError(
                f"out_sharding = {out_sharding} needs operands on a mesh with explicit axes; with "
                "automatic axes use jax.lax.with_sharding_constraint on the result"
            )
        return None
    if isinstance(out_sharding, PartitionSpec):
        return NamedSharding(mesh, out_sharding)

    def product(a, b):  # traced for its sharding; the cast, too, is never computed
        a, b = a.astype(jnp.float32), b.astype(jnp.float32)
        return lax.dot_general(a, b, numbers, out_sharding=out_sharding)

    return jax.eval_shape(product, lhs, rhs).sharding


def _check_arguments(lhs, rhs, precision, preferred_element_type):
    for name, array in (("lhs", lhs), ("rhs", rhs)):
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise TypeError(f"{name} is {array.dtype} of shape {array.shape}; floats are supported")
    if preferred_element_type is not None and not jnp.issubdtype(
        preferred_element_type, jnp.floating
    ):
        raise TypeError(
            f"preferred_element_type = {preferred_element_type}: a float dtype is needed"
        )
    allowed = (None, lax.Precision.DEFAULT, "default")
    pair = precision if isinstance(precision, tuple) else (precision,)
    if any(entry not in allowed for entry in pair):
        raise ValueError(
            f"precision = {precision} cannot be honoured: the recipe decides how operands are "
            "kept and sums are FP32; leave precision unset"
        )

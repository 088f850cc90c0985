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

All of it is one `jax.custom_vjp`: operands are prepared (`operands.py`), three times two of them
multiplied (`product.py`), and some of them kept for later (`residuals.py`). Forward-mode
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

from nvfp4_jax.axes import explicit_mesh, run_automatic, to_vary, varying
from nvfp4_jax.contraction import Dims, merge, merged_axes, operand_dims, restore
from nvfp4_jax.honoured import (
    check_arguments,
    check_feature_parts,
    check_gathered,
    check_parts,
    check_together,
)
from nvfp4_jax.kernels.request import Operand, Packed
from nvfp4_jax.kernels.select import select
from nvfp4_jax.operands import (
    Amaxes,
    Scaled,
    Use,
    check_native,
    emulated,
    pack,
    prepare,
    scaled,
    weight_amaxes,
)
from nvfp4_jax.ordered_product import Cuts, multiply_apart, multiply_ordered
from nvfp4_jax.precision import GEMMS, LinearPrecision
from nvfp4_jax.product import multiply
from nvfp4_jax.residuals import Keep, Kept, kept_shardings, laid_out_packed, named, plan
from nvfp4_jax.scopes import gemm_scope, quantize_scope
from nvfp4_jax.together import FeatureParts, GemmCuts, gemm_cuts, linear_together

DotGeneral = Callable[..., Array]

FPROP_INPUT, FPROP_WEIGHT = Use("fprop", "input"), Use("fprop", "weight")
DGRAD_GRAD, DGRAD_WEIGHT = Use("dgrad", "grad"), Use("dgrad", "weight")
WGRAD_INPUT, WGRAD_GRAD = Use("wgrad", "input"), Use("wgrad", "grad")


def make_dot_general(
    linear_precision: LinearPrecision,
    key: Array | None = None,
    implementation: str | None = None,
    weight_amax: Array | None = None,
    name: str | None = None,
    gathered: NamedSharding | None = None,
    together: bool = False,
    feature_parts: FeatureParts | None = None,
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
      weight_amax: int32 bits of the weight's largest magnitude as it is quantized, from
        `operands.amax_bits`, for a weight that is multiplied often between two changes, such as
        by every microbatch of a step. It must be right: nothing checks it.
      name: the layer's path, under which profiles and `explain --compiled` show its products; it
        changes nothing else.
      gathered: how the weight (2-D, on automatic mesh axes) is to lie when it is multiplied, where
        it is stored in more parts than that. If it has the same NVFP4 values for Fprop and Dgrad
        and both are emulated, it then travels packed, at 4.5 bits an element, and is kept so for
        the backward pass; otherwise this changes nothing. Never a bit of the result.
      together: under `jax.vmap` over the input alone, let the mapped parts be one batch: one
        tensor to every quantizer, with a gradient of the weight for each part; see `together`.
        The input is then kept as it is, and products are emulated.
      feature_parts: under such a map, compute products in parts of the features in or out too,
        and add parts up in pairs where a product contracts these: devices that share the weight
        along that axis (tensor parallelism) then get one device's bits.

    Raises:
      ValueError: a key is needed and missing, or the implementation cannot run here or does not
        do a quantizer of this precision; `together` with packed residuals, `gathered`, or an
        implementation that multiplies 4-bit codes; `feature_parts` without `together`. The
        returned function raises on arguments it cannot honour: a `precision` other than the
        default, operands that are not floats, or `feature_parts` that do not divide them.
    """
    if linear_precision.needs_key and key is None:
        raise ValueError(
            "this precision draws random numbers (stochastic rounding or random signs); "
            "pass key=jax.random.key(...) to make_dot_general"
        )
    select(implementation, linear_precision.quantizers)
    check_native(linear_precision, implementation)
    if together:
        check_together(linear_precision, implementation, gathered)
    elif feature_parts is not None:
        raise ValueError(f"{feature_parts} is for together = True")
    amaxes = weight_amaxes(linear_precision, weight_amax)

    def dot_general(
        lhs: Array,
        rhs: Array,
        dimension_numbers: Any,
        precision: Any = None,
        preferred_element_type: Any = None,
        *,
        out_sharding: Any = None,
    ) -> Array:
        check_arguments(lhs, rhs, precision, preferred_element_type)
        dtype = jnp.dtype(preferred_element_type or lhs.dtype)
        numbers = _hashable(dimension_numbers)
        sharding = _output_sharding(lhs, rhs, numbers, out_sharding)
        check_gathered(lhs, rhs, gathered)
        call = Call(linear_precision, numbers, dtype, implementation, sharding, name, gathered)
        check_native(linear_precision, implementation, matrix=not call.dims(lhs, rhs)[0].batch)
        axes = varying(lhs) | varying(rhs)
        lhs, rhs = to_vary(lhs, axes), to_vary(rhs, axes)
        if together:
            return _together(call, feature_parts, lhs, rhs, key, amaxes)
        return linear(call, lhs, rhs, key, amaxes)

    return dot_general


@dataclass(frozen=True)
class Call:
    """What is static about one call; hashable, as custom_vjp's argument that has no gradient."""

    precision: LinearPrecision
    numbers: Any
    dtype: Any
    implementation: str | None
    sharding: Any
    name: str | None
    gathered: NamedSharding | None

    def dims(self, lhs: Any, rhs: Any) -> tuple[Dims, Dims]:
        return operand_dims(self.numbers, lhs.shape, rhs.shape)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def linear(call: Call, lhs: Array, rhs: Array, key: Array | None, amaxes: Amaxes) -> Array:
    """One call of a `dot_general`, with those amaxes of its operands that are known."""

    def fprop(*arrays):
        return _fprop(call, Keep(), *arrays)[0]

    mesh = explicit_mesh(lhs, rhs)
    y = run_automatic(fprop, mesh, call.sharding, lhs, rhs, key, amaxes)
    return to_vary(y, varying(lhs))


def forward(call, lhs, rhs, key, amaxes):
    """Fprop, and what the backward pass will need."""
    mesh = explicit_mesh(lhs, rhs)
    x_dims, _ = call.dims(lhs, rhs)
    matrix = not x_dims.batch and lhs.size > 0
    travels = call.gathered is not None
    keep = plan(call.precision, call.implementation, mesh is not None, matrix, travels)
    fprop = partial(_fprop, call, keep)
    arrays = lhs, rhs, key, amaxes
    shardings = kept_shardings(mesh, fprop, x_dims, call.sharding, *arrays)
    y, kept_x, kept_w = run_automatic(fprop, mesh, shardings, *arrays)
    y = to_vary(y, varying(lhs))
    kept_x = named(lhs if keep.input == "tensor" else kept_x)
    kept_w = rhs if keep.weight == "tensor" else kept_w
    return y, (Kept(kept_x, kept_w, jax.typeof(lhs), jax.typeof(rhs)), key, amaxes)


def _fprop(
    call, keep: Keep, lhs, rhs, key, amaxes, cuts: Cuts | None = None
) -> tuple[Array, Operand | Packed | None, Any]:
    """y = x w, and what is kept of x and w unless it is they themselves."""
    x_dims, w_dims = call.dims(lhs, rhs)
    x, w = merge(lhs, x_dims), merge(rhs, w_dims)
    uses = [(FPROP_INPUT, x), (WGRAD_INPUT, x.swapped())]
    with gemm_scope(call.name, "fprop"):
        now = uses if keep.input == "operand" else uses[:1]
        x_ready, *others = _ready(call, key, now, amaxes=amaxes)
        w_ready, kept_w = _weight(call, key, keep, w, _rounded_dtype(lhs), amaxes)
        y = _multiply(x_ready, w_ready, call.dtype, call.implementation, cuts)
    shape = _take(lhs, (*x_dims.batch, *x_dims.free)) + _take(rhs, w_dims.free)
    kept_x = others[0].operand if others else None
    if keep.input == "packed":
        with gemm_scope(call.name, "wgrad"), quantize_scope("input"):
            kept_x = pack(call.precision, key, call.implementation, *uses[1], None, amaxes)
    return y.reshape(shape), kept_x, kept_w


def _weight(call, key, keep: Keep, w, dtype, amaxes) -> tuple[Scaled, Operand | Packed | None]:
    """Fprop's weight, and Dgrad's if it is to be kept: the same values, as codes laid otherwise."""
    uses = [(FPROP_WEIGHT, w), (DGRAD_WEIGHT, w.swapped())]
    if keep.weight == "packed":
        with quantize_scope("weight"):
            packed = pack(call.precision, key, call.implementation, *uses[0], dtype, amaxes)
        return _unpacked(call, w.axes, packed), packed
    if keep.weight != "operand":
        return _ready(call, key, uses[:1], dtype, amaxes)[0], None
    matrix = w.batch is None and w.array.size > 0
    both_ways = all(emulated(call.precision, g, call.implementation, matrix) for g in GEMMS[:2])
    one, *other = _ready(call, key, uses[:1] if both_ways else uses, dtype, amaxes)
    return one, (other[0] if other else one).operand


def _unpacked(call, axes, packed: Packed) -> Scaled:
    """A packed weight, gathered and unpacked where it is multiplied."""
    with quantize_scope("weight"):
        whole = laid_out_packed(packed, call.gathered)
        return scaled(axes, select(call.implementation).from_packed(whole))


def _ready(call, key, uses, dtype=None, amaxes=None) -> tuple[Scaled, ...]:
    """One tensor as each of its uses wants it; see `operands.prepare`."""
    with quantize_scope(uses[0][0].operand):
        return prepare(call.precision, key, call.implementation, uses, dtype, amaxes)


def backward(call, residuals, dy):
    """Dgrad: dx = dy wᵀ, and Wgrad: dw = xᵀ dy; dy is quantized for each."""
    kept, key, amaxes = residuals
    mesh = explicit_mesh(dy, *jax.tree.leaves(kept))
    shardings = kept.lhs.sharding, kept.rhs.sharding
    dx, dw = run_automatic(partial(_gradients, call), mesh, shardings, dy, kept, key, amaxes)
    dx, dw = (to_vary(d, t.manual_axis_type.varying) for d, t in ((dx, kept.lhs), (dw, kept.rhs)))
    return dx, dw, None, None


def _together(call, feature_parts: FeatureParts | None, lhs, rhs, key, amaxes) -> Array:
    """The linear whose parts, if it is mapped over them, are one batch."""
    rows, features = call.dims(lhs, rhs)
    if rows.batch or rows.free[:1] != (0,) or explicit_mesh(lhs, rhs) is not None:
        raise ValueError(
            f"together = True: the first axis of the input must be rows, with no batch axes and no "
            f"explicit mesh axes; this one has shape {lhs.shape} and numbers {call.numbers}"
        )
    check_feature_parts(feature_parts, rhs.shape, features)

    def cuts(parts: int | None) -> GemmCuts | None:
        return None if parts is None else gemm_cuts(parts, feature_parts)

    def fprop(lhs, rhs, key, amaxes, parts=None):
        own = cuts(parts)
        return _fprop(call, Keep(), lhs, rhs, key, amaxes, own and own.fprop)[0]

    def gradients(lhs, rhs, dy, key, amaxes, parts=None):
        kept = Kept(lhs, rhs, jax.typeof(lhs), jax.typeof(rhs))
        check_parts(call.precision, lhs.shape, call.numbers[0][0], parts or 1)
        return _gradients(call, dy, kept, key, amaxes, cuts(parts))

    return linear_together(fprop, gradients)(lhs, rhs, key, amaxes)


def _gradients(
    call, dy, kept: Kept, key, amaxes, cuts: GemmCuts | None = None
) -> tuple[Array, Array]:
    x_dims, _ = call.dims(kept.lhs, kept.rhs)
    y = merge(dy, _product_dims(x_dims, dy.ndim))
    uses = [(DGRAD_GRAD, y), (WGRAD_GRAD, y.swapped())]
    with gemm_scope(call.name, "dgrad"):
        dy_dgrad, dy_wgrad = _ready(call, key, uses, _rounded_dtype(kept.lhs), amaxes)
        dx = _dgrad(call, dy_dgrad, kept, key, amaxes, cuts and cuts.dgrad)
    with gemm_scope(call.name, "wgrad"):
        dw = _wgrad(call, dy_wgrad, kept, key, cuts and cuts.wgrad)
    return dx, dw


def _multiply(a: Scaled, b: Scaled, dtype, implementation, cuts: Cuts | None) -> Array:
    """Rows times a weight; in parts, each as one product of its own size."""
    if cuts is None:
        return multiply(a, b, dtype, implementation)
    return multiply_ordered(a, b, cuts, dtype)


def _dgrad(call, dy: Scaled, kept: Kept, key, amaxes, cuts: Cuts | None) -> Array:
    x_dims, w_dims = call.dims(kept.lhs, kept.rhs)
    if isinstance(kept.weight, Packed):
        w_ready = _unpacked(call, merged_axes(w_dims).swapped(), kept.weight)
    elif isinstance(kept.weight, Operand):
        w_ready = scaled(merged_axes(w_dims).swapped(), kept.weight)
    else:
        uses = [(DGRAD_WEIGHT, merge(kept.weight, w_dims).swapped())]
        (w_ready,) = _ready(call, key, uses, _rounded_dtype(kept.lhs), amaxes)
    dx = _multiply(dy, w_ready, kept.lhs.dtype, call.implementation, cuts)
    return restore(dx, kept.lhs.shape, (*x_dims.batch, *x_dims.free, *x_dims.contract))


def _wgrad(call, dy: Scaled, kept: Kept, key, cuts: Cuts | None) -> Array:
    x_dims, w_dims = call.dims(kept.lhs, kept.rhs)
    x = merged_axes(x_dims).swapped()
    if isinstance(kept.input, Packed):
        with quantize_scope("input"):
            x_ready = scaled(x, select(call.implementation).from_packed(kept.input))
    elif isinstance(kept.input, Operand):
        x_ready = scaled(x, kept.input)
    else:
        (x_ready,) = _ready(call, key, [(WGRAD_INPUT, merge(kept.input, x_dims).swapped())])
    order = (*w_dims.batch, *w_dims.contract, *w_dims.free)
    if cuts is not None:
        dw = multiply_apart(x_ready, dy, cuts, kept.rhs.dtype)
        return jax.vmap(lambda part: restore(part, kept.rhs.shape, order))(dw)
    dw = multiply(x_ready, dy, kept.rhs.dtype, call.implementation)
    return restore(dw, kept.rhs.shape, order)


linear.defvjp(forward, backward)


def _product_dims(x_dims: Dims, ndim: int) -> Dims:
    """The axes of y (and dy): Dgrad contracts what the weight left free."""
    batch, rows = len(x_dims.batch), len(x_dims.free)
    axes = tuple(range(ndim))
    return Dims(axes[:batch], axes[batch : batch + rows], axes[batch + rows :])


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

    result: Any = jax.make_jaxpr(product)(lhs, rhs).out_avals[0]  # eval_shape's drops mixed axes
    return result.sharding

"""bf16 times bf16 with FP32 accumulation, then the tensor scales, then the result's dtype.

The one product all three GEMMs of a linear are made of. The FP32 scales of the operands cannot
ride in bf16, so they multiply the FP32 sum: y = ((a b) s_a) s_b, rounded once at the end.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array

from nvfp4_jax.contraction import Merged, product_numbers
from nvfp4_jax.kernels.blocks import pad_to
from nvfp4_jax.kernels.request import Native
from nvfp4_jax.kernels.select import select, select_native
from nvfp4_jax.operands import Scaled


def multiply(a: Scaled, b: Scaled, dtype: DTypeLike, implementation: str | None) -> Array:
    """The product of two prepared operands, (batch, a's free axis, b's free axis)."""
    scales = tuple(scale for scale in (a.scale, b.scale) if scale is not None)
    if isinstance(a.merged, Native) or isinstance(b.merged, Native):
        return _native(a.merged, b.merged, scales, dtype, implementation)
    one, other = _equally_long(a.merged, b.merged)
    kernel = select(implementation).scaled_product
    if kernel is not None and one.batch is None and dtype in (jnp.bfloat16, jnp.float32):
        contract = one.contract, other.contract
        return kernel(one.array, other.array, contract, scales, dtype)
    return scale_sums(_product(one, other), a, b).astype(dtype)


def scale_sums(y: Array, a: Scaled, b: Scaled) -> Array:
    """(y s_a) s_b: FP32 sums of products, times the tensor scales that the operands have."""
    for scale in (a.scale, b.scale):
        y = y if scale is None else y * scale
    return y


def _native(a, b, scales, dtype: DTypeLike, implementation: str | None) -> Array:
    """On 4-bit codes. Only an empty operand, which has none, can meet one that has."""
    if not (isinstance(a, Native) and isinstance(b, Native)):
        rows = [x.rows if isinstance(x, Native) else x.array.shape[1 - x.contract] for x in (a, b)]
        return jnp.zeros(tuple(rows), dtype)
    exact = jnp.bfloat16 if dtype == jnp.bfloat16 else jnp.float32
    kernels = select_native(implementation)
    assert kernels is not None  # it made these operands
    return kernels.native_product(a, b, scales, exact).astype(dtype)


def _product(a: Merged, b: Merged) -> Array:
    """The FP32 sums of bf16 products.

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
    """The barrier keeps these casts this product's own, by whose names `compiled` knows it."""
    a, b = lax.optimization_barrier((a, b))
    a, b = a.astype(jnp.float32), b.astype(jnp.float32)
    return lax.dot_general(a, b, numbers, precision=lax.Precision.HIGHEST)


def _equally_long(a: Merged, b: Merged) -> tuple[Merged, Merged]:
    """Zeros to even out rotated operands that different blocks padded to different lengths."""
    length = max(a.array.shape[a.contract], b.array.shape[b.contract])

    def padded(operand):
        shape = list(operand.array.shape)
        shape[operand.contract] = length
        return operand.with_array(pad_to(operand.array, tuple(shape)))

    return padded(a), padded(b)

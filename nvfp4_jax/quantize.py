"""`quantize`, `dequantize` and `qdq`: a tensor into codes and scales, and back.

    codes, scales = quantize(x)            x̂ = codes * block scale * tensor scale

Any shape, any axis, any float dtype. Blocks lie along `axis`, which in a linear layer is always
the contraction axis of the GEMM the operand goes into: that way a product of two quantized
vectors needs one multiplication by scales a block.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float32

from nvfp4_jax import hadamard
from nvfp4_jax.axes import explicit_mesh, fitting_sharding, run_automatic
from nvfp4_jax.block_scaled import BlockScaledArray
from nvfp4_jax.kernels import xla
from nvfp4_jax.kernels.select import select
from nvfp4_jax.quantizer import Quantizer

SIGN_STREAM = 3  # folded into a key for the RHT's signs; 0, 1, 2 are a GEMM's operands


def quantize(
    x: Float[Array, "..."],
    quantizer: Quantizer,
    axis: int = -1,
    key: Array | None = None,
    implementation: str | None = None,
) -> BlockScaledArray:
    """Codes and scales of `x` in blocks along `axis`.

    Args:
      x: at least one axis; float64 is rounded to float32 first. Sizes that are no multiple of the
        block are padded with zeros, which change neither maxima nor products.
      quantizer: format, block, rounding, rotation.
      axis: the axis the blocks (and the rotation) lie along. For square blocks of a tensor with
        other than two axes, the others are flattened to rows.
      key: for stochastic rounding and random signs; typed or raw.
      implementation: `None` for the best available, or a name.

    Returns:
      A `BlockScaledArray`. A NaN or infinity anywhere makes everything it dequantizes to NaN
      (with formats that have no tensor scale: its block).

    Raises:
      TypeError: `x` is not a float array.
      ValueError: no axes, an axis out of range, a key that is missing, an unknown implementation.

    Source: arXiv 2509.25149 appendix B. On CPUs tensors with 0 < max|x| < 3e-35, and blocks below
    8e-38 in any tensor, are exempt from bit-exactness, since XLA flushes subnormal numbers there.
    """
    x, axis = _checked(x, axis)
    _check_key(quantizer, key)
    kernel = select(implementation, (quantizer,))
    mesh = explicit_mesh(x)

    def run(x, key):
        return _quantize(kernel, x, quantizer, axis, key)

    if mesh is None:
        return run(x, key)
    result = jax.eval_shape(run, *jax.tree.map(_unplaced, (x, key)))
    spec = jax.typeof(x).sharding.spec
    shardings = jax.tree.map(lambda leaf: _sharding_like(mesh, spec, x.ndim, leaf), result)
    return run_automatic(run, mesh, shardings, x, key)


def dequantize(q: BlockScaledArray, dtype: DTypeLike = jnp.float32) -> Array:
    """(code * block scale) * tensor scale, in float32, cast to `dtype` at the end.

    With an RHT the result is the rotated tensor, padded along its axis.
    """
    mesh = explicit_mesh(q.data)
    sharding = jax.typeof(q.data).sharding if mesh is not None else None
    return run_automatic(lambda q: _dequantize(q, dtype), mesh, sharding, q)


def qdq(
    x: Float[Array, "..."],
    quantizer: Quantizer,
    axis: int = -1,
    key: Array | None = None,
    implementation: str | None = None,
) -> Float32[Array, "..."]:
    """`dequantize(quantize(x))`: what a GEMM sees of `x`, in float32; arguments as `quantize`."""
    return dequantize(quantize(x, quantizer, axis, key, implementation))


def signs_for(quantizer: Quantizer, key: Array | None) -> Float32[Array, "n"] | None:
    """The RHT's sign vector: fixed, or drawn from `key` folded with `SIGN_STREAM`."""
    if not quantizer.rht:
        return None
    if quantizer.sign == "fixed":
        return hadamard.fixed_signs()
    assert key is not None  # _check_key and make_dot_general have seen to it
    return hadamard.random_signs(jax.random.fold_in(key, SIGN_STREAM), quantizer.rht)


@partial(jax.jit, static_argnums=(0, 2, 3))  # eager calls too are one program, not sixty
def _quantize(kernel, x, quantizer, axis, key):
    signs = signs_for(quantizer, key)
    flat, flat_axis = _flattened(x, quantizer, axis)
    if flat.shape == x.shape:
        return kernel.quantize(x, quantizer, axis, key, signs)
    random = kernel.random_for(x, quantizer, axis, key)  # by place in x, not in the matrix
    if random is not None:
        random, _ = _flattened(random, quantizer, axis)
    q = kernel.quantize(flat, quantizer, flat_axis, key, signs, random)
    data = _unflattened(q.data, x.shape, axis)
    return BlockScaledArray(data, q.block_scale, q.tensor_scale, quantizer, axis - x.ndim)


@partial(jax.jit, static_argnums=1)
def _dequantize(q: BlockScaledArray, dtype):
    flat, flat_axis = _flattened(q.data, q.quantizer, q.axis % q.data.ndim)
    if flat.shape == q.data.shape:
        return xla.dequantize(q, dtype)
    axis = flat_axis - flat.ndim
    flat_q = BlockScaledArray(flat, q.block_scale, q.tensor_scale, q.quantizer, axis)
    return _unflattened(xla.dequantize(flat_q, dtype), q.shape, q.axis % q.data.ndim)


def _flattened(x, quantizer, axis):
    """`x` as a matrix for square blocks: (rows, axis), or (axis, rows) if `axis` is the first."""
    square = quantizer.block is not None and quantizer.block[0] > 1
    if not square or x.ndim == 2:
        return x, axis
    if axis == 0 and x.ndim > 1:
        return x.reshape(x.shape[0], -1), 0
    return jnp.moveaxis(x, axis, -1).reshape(-1, x.shape[axis]), 1


def _unflattened(flat, shape, axis):
    """The inverse of `_flattened`; the length along `axis` may have grown by padding."""
    if axis == 0 and len(shape) > 1:
        return flat.reshape(-1, *shape[1:])
    rest = shape[:axis] + shape[axis + 1 :]
    return jnp.moveaxis(flat.reshape(*rest, -1), -1, axis)


def _checked(x, axis):
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"quantize takes a float array, got {x.dtype} of shape {x.shape}")
    if not -x.ndim <= axis < x.ndim:
        raise ValueError(
            f"axis {axis} is not an axis of shape {x.shape}; quantize needs the axis its blocks "
            "lie along"
        )
    return x, axis % x.ndim


def _check_key(quantizer, key):
    if quantizer.needs_key and key is None:
        raise ValueError(
            f"{quantizer} draws random numbers; pass key=jax.random.key(...) to quantize"
        )


def _unplaced(array):
    return jax.ShapeDtypeStruct(array.shape, array.dtype)


def _sharding_like(mesh, spec, ndim, leaf):
    if leaf.ndim != ndim:
        return NamedSharding(mesh, PartitionSpec())
    return fitting_sharding(mesh, spec, leaf.shape)

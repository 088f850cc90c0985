"""The linear layer: an `nnx.Linear` whose product is a plug.

Precision enters a model in one place only, the `dot_general` attribute of its linear layers:
whoever trains assigns a quantized one, and the model knows nothing of formats. For that to work
the FP32 master weight must reach `dot_general` as it is (Flax would cast it to the compute dtype
first, and its gradient would come back rounded), so `promote_dtype` casts the input alone.

Until something is bound, a layer multiplies in its compute dtype (`default_dot_general`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike

from nvfp4_jax.models.product import contract

LINEAR_INPUT = "linear_input"  # what rematerialization calls what a linear keeps of its input


def linear(
    features_in: int,
    features_out: int,
    *,
    sigma: float,
    dtype: DTypeLike,
    param_dtype: DTypeLike,
    rngs: nnx.Rngs,
    result: DTypeLike | None = None,
) -> nnx.Linear:
    """A bias-free linear layer y = x w, its kernel drawn from N(0, sigma^2).

    Args:
      features_in, features_out: the kernel's shape.
      sigma: standard deviation of the kernel.
      dtype: compute dtype: what x is cast to.
      param_dtype: dtype of the kernel, which is never cast before `dot_general`.
      rngs: stream `params` is used.
      result: dtype of y where it is not the compute dtype (FP32 logits).
    """
    return nnx.Linear(
        features_in,
        features_out,
        use_bias=False,
        dtype=dtype,
        param_dtype=param_dtype,
        kernel_init=nnx.initializers.normal(sigma),
        dot_general=default_dot_general,
        promote_dtype=cast_input_only,
        preferred_element_type=result,
        rngs=rngs,
    )


def cast_input_only[Operands: tuple[Any, ...]](
    args: Operands, /, *, dtype: DTypeLike | None = None, inexact: bool = True
) -> Operands:
    """Flax's `promote_dtype` for (input, kernel, bias), leaving the weights as they are stored.

    Raises:
      TypeError: no dtype, or an integer one: a layer of this package always has a float dtype.
    """
    if dtype is None or not jnp.issubdtype(dtype, jnp.inexact):
        raise TypeError(f"a linear layer computes in a float dtype, not {dtype}")
    x, *weights = args
    return cast("Operands", (x.astype(dtype), *weights))


def default_dot_general(
    lhs: Array,
    rhs: Array,
    dimension_numbers,
    precision=None,
    preferred_element_type: DTypeLike | None = None,
    *,
    out_sharding=None,
) -> Array:
    """y = x w in the dtype of x, with FP32 accumulation; see `product.contract`.

    Args:
      lhs: x, (..., features_in).
      rhs: w, (features_in, features_out), of any dtype.
      dimension_numbers: as of `lax.dot_general`; the last axis of x against the first of w.
      preferred_element_type: dtype of y; x's when left out.

    Raises:
      NotImplementedError: `precision`, `out_sharding` or other dimension numbers, none of which
        the layers of this package pass.
    """
    expected = (((lhs.ndim - 1,), (0,)), ((), ()))
    if precision is not None or out_sharding is not None or _tuples(dimension_numbers) != expected:
        raise NotImplementedError(
            "the models' default product takes the last axis of the input against the first of "
            f"the weight, without precision= or out_sharding=, not {dimension_numbers}; "
            "bind a dot_general that does"
        )
    rows = "abcdefg"[: lhs.ndim - 1]
    result = preferred_element_type or lhs.dtype
    lhs = checkpoint_name(lhs, LINEAR_INPUT)
    return contract(f"{rows}x,xy->{rows}y", lhs, rhs, lhs.dtype, result)


def _tuples(nested) -> tuple:
    """Dimension numbers with their lists made tuples, so that they compare."""
    return tuple(_tuples(n) if isinstance(n, Sequence) else n for n in nested)

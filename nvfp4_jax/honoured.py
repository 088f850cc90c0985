"""Which arguments of a `dot_general` cannot be honoured: they raise, and none is dropped."""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.sharding import NamedSharding
from jaxtyping import Array

from nvfp4_jax.axes import explicit_mesh
from nvfp4_jax.contraction import Dims
from nvfp4_jax.operands import emulated
from nvfp4_jax.precision import GEMMS, LinearPrecision, rotation
from nvfp4_jax.together import FeatureParts


def check_together(
    precision: LinearPrecision, implementation: str | None, gathered: NamedSharding | None
) -> None:
    """Parts of a batch together: with plain residuals, whole weights and emulated products."""
    if precision.residuals == "packed" or gathered is not None:
        raise ValueError(
            "together = True keeps the input as it is and multiplies whole weights: leave out "
            "gathered, and residuals = 'packed' in the recipe"
        )
    if any(emulated(precision, gemm, implementation) is None for gemm in GEMMS):
        raise ValueError(
            "together = True multiplies in bf16: give an implementation that emulates ('triton' or "
            "'xla') instead of 4-bit tensor cores"
        )


def check_parts(
    precision: LinearPrecision, shape: tuple[int, ...], features: tuple[int, ...], parts: int
) -> None:
    """A rotation mixes neighbouring tokens, and must not reach from one part into the next."""
    tokens = math.prod(size for axis, size in enumerate(shape) if axis not in features)
    block = max(rotation(precision.wgrad.input)[0], 1)
    if tokens % (parts * block):
        raise ValueError(
            f"together = True: {tokens} tokens in {parts} parts; each must be whole rotations of "
            f"{block} tokens"
        )


def check_feature_parts(
    feature_parts: FeatureParts | None, shape: tuple[int, ...], weight: Dims
) -> None:
    """Parts of a weight's features: equal, and a power of two of them, to add up in pairs."""
    if feature_parts is None:
        return
    axes = weight.contract if feature_parts.axis == "in" else weight.free
    features, parts = math.prod(shape[axis] for axis in axes), feature_parts.parts
    if parts < 1 or parts & (parts - 1) or features % parts:
        raise ValueError(
            f"{feature_parts}: give a power of two that divides the {features} features "
            f"{feature_parts.axis} of this weight of shape {shape}"
        )


def check_gathered(lhs: Array, rhs: Array, layout: NamedSharding | None) -> None:
    """A layout to gather a weight to: of a matrix, on automatic axes."""
    if layout is None:
        return
    if explicit_mesh(lhs, rhs) is not None:
        raise ValueError(
            "gathered = ... is for automatic mesh axes; with explicit axes reshard the weight"
        )
    if rhs.ndim != 2 or len(layout.spec) != 2:
        raise ValueError(
            f"gathered = {layout.spec}: give a layout of two axes, for a weight of two; this one "
            f"has shape {rhs.shape}"
        )


def check_arguments(lhs: Array, rhs: Array, precision: Any, preferred_element_type: Any) -> None:
    """Operands are floats, and `lax.dot_general`'s precision is left to the recipe."""
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

"""Keeping the master weight in FP32 on its way into a layer.

Flax layers promote input and weight to one dtype before the product, so a bf16 layer rounds its
FP32 weight to bf16 outside of our reach, and the weight's gradient comes back rounded to bf16 as
well. `keep_weight` is a `promote_dtype` that casts the input and the bias and leaves the weight:
our `dot_general` takes an FP32 weight under a bf16 input, and returns its gradient in FP32.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax.nnx.nn import dtypes


def keep_weight(args: Any, /, *, dtype: Any = None, inexact: bool = True) -> Any:
    """`promote_dtype` for (input, weight, *rest): all to the common dtype but the weight.

    Give it to `flax.nnx.Linear`, `LinearGeneral` and `Einsum` as `promote_dtype=`; `apply_recipe`
    does. Linen's layers call theirs otherwise and take `nvfp4_jax.linen.keep_weight`.

    Args:
      args: (input, weight, bias), None where there is none; any sequence.
      dtype: the layer's computation dtype, or None for the common one of all.
      inexact: as in Flax.
    """
    promoted = list(dtypes.promote_dtype(tuple(args), dtype=dtype, inexact=inexact))
    if len(promoted) > 1 and args[1] is not None:
        promoted[1] = jnp.asarray(args[1])
    return tuple(promoted)

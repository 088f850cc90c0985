"""The embedding: one row of a table for each token.

Rows are FP32 as stored and cast after they are gathered, so the gradient is summed in FP32.
"""

from __future__ import annotations

import jax
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from nvfp4_jax.models.pieces import in_pieces


class Embedding(nnx.Module):
    """tokens (...) to rows (..., features) in the compute dtype; entries start at N(0, sigma^2)."""

    def __init__(
        self,
        vocabulary: int,
        features: int,
        *,
        sigma: float,
        dtype: DTypeLike,
        param_dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        values = sigma * jax.random.normal(rngs.params(), (vocabulary, features), param_dtype)
        self.weight = nnx.Param(values)
        self.dtype = dtype

    def __call__(self, tokens: Array) -> Array:

        def rows(weight: jax.Array, tokens: jax.Array) -> jax.Array:
            return weight[tokens].astype(self.dtype)

        return in_pieces(rows, (self.weight[...], None), (tokens, None), result=None)

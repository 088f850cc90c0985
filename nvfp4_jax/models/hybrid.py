"""The hybrid language model: embedding, blocks, norm, head.

    tokens -> embedding -> blocks -> RMSNorm -> head -> logits (FP32)

`model(tokens)` is the whole. Training takes the parts: `model.embed`, `apply_blocks` (which can
bind precisions, rematerialize and scan), `model.readout`, and then the head with the
cross-entropy a few tokens at a time, because the logits of a large vocabulary do not fit: 8192
tokens times 131,072 words in FP32 are 4.3 GB.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from nvfp4_jax.models.apply import apply_blocks
from nvfp4_jax.models.block import Block
from nvfp4_jax.models.config import HybridConfig
from nvfp4_jax.models.embedding import Embedding
from nvfp4_jax.models.linear import linear
from nvfp4_jax.models.norm import RMSNorm
from nvfp4_jax.models.placement import place
from nvfp4_jax.models.product import accumulator


class Hybrid(nnx.Module):
    """A hybrid Mamba-2 / attention / MLP language model.

    Args:
      config: the shape.
      rngs: stream `params` draws the initial values.
      dtype: compute dtype; bfloat16 for training, float32 to compare with others.
      param_dtype: dtype of the parameters, the master copy.
    """

    def __init__(
        self,
        config: HybridConfig,
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.bfloat16,
        param_dtype: DTypeLike = jnp.float32,
    ):
        common = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.config = config
        self.embedding = Embedding(
            config.vocabulary, config.hidden, sigma=config.init_sigma, **common
        )
        self.blocks = nnx.List(Block(config, letters, **common) for letters in config.blocks)
        self.final_norm = RMSNorm(config.hidden, eps=config.norm_eps, param_dtype=param_dtype)
        self.head = linear(
            config.hidden,
            config.vocabulary,
            sigma=config.init_sigma,
            result=accumulator(dtype),
            **common,
        )

    def __call__(self, tokens: Array, segment_ids: Array | None = None) -> Array:
        """tokens (batch, length), integers, to FP32 logits (batch, length, vocabulary).

        Packed rows name the document of each token in segment_ids (batch, length); no token then
        sees another document.
        """
        hidden = apply_blocks(self, self.embed(tokens), segment_ids)
        return self.head(self.readout(hidden))

    def embed(self, tokens: Array) -> Array:
        """(batch, length) to (batch, length, hidden), in the compute dtype."""
        return place(self.embedding(tokens), "batch", "between", "hidden")

    def readout(self, x: Array) -> Array:
        """The final norm: what the head multiplies."""
        return self.final_norm(x)


def count_parameters(config: HybridConfig) -> int:
    """The exact number of parameters, found by tracing: nothing is allocated."""
    model = nnx.eval_shape(lambda: Hybrid(config, rngs=nnx.Rngs(0)))
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))

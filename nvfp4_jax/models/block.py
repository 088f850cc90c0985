"""A block: what is counted, rematerialized and scanned over.

    x = x + mixer(RMSNorm(x))        for each mixer of the block, usually one

A mixer lives under its name (`mamba`, `mlp`, `attention`) with its norm beside it
(`mamba_norm`, ...).
"""

from __future__ import annotations

from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from nvfp4_jax.models.attention import Attention
from nvfp4_jax.models.config import MIXERS, HybridConfig
from nvfp4_jax.models.mamba2 import Mamba2
from nvfp4_jax.models.mlp import MLP
from nvfp4_jax.models.norm import RMSNorm
from nvfp4_jax.models.placement import place

_CLASSES = {"mamba": Mamba2, "mlp": MLP, "attention": Attention}


class Block(nnx.Module):
    """The mixers of one block, named by `letters`, each behind its norm."""

    def __init__(
        self,
        config: HybridConfig,
        letters: str,
        *,
        dtype: DTypeLike,
        param_dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        self.letters = letters
        for name in self.mixers:
            norm = RMSNorm(config.hidden, eps=config.norm_eps, param_dtype=param_dtype)
            mixer = _CLASSES[name](config, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
            setattr(self, f"{name}_norm", norm)
            setattr(self, name, mixer)

    @property
    def mixers(self) -> tuple[str, ...]:
        """The names of the mixers in the order in which they run."""
        return tuple(MIXERS[letter] for letter in self.letters)

    def __call__(self, x: Array, segment_ids: Array | None = None) -> Array:
        """x (batch, length, hidden); segment_ids (batch, length) as from `segments.number`."""
        for name in self.mixers:
            norm, mixer = getattr(self, f"{name}_norm"), getattr(self, name)
            y = mixer(place(norm(x), "batch", "length", "hidden"), segment_ids)
            x = x + place(y, "batch", "between", "hidden")
        return x

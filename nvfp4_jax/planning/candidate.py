"""One way to run a step on a cluster."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from nvfp4_jax import models
from nvfp4_jax.gpus import Gpu
from nvfp4_jax.recipe import Recipe
from nvfp4_jax.training.mesh import MeshShape


@dataclass(frozen=True)
class Job:
    """What is to be run, and on which GPUs.

    Attributes:
      model, recipe: its shape and numerics; `model_name` is how it was asked for.
      gpu: of the cluster.
      batch, length: rows a step of all GPUs together, tokens a row.
      run_tokens: of the whole run.
      documents: in a row, of equal length.
      scan, gather: as in training.
    """

    model_name: str
    model: models.HybridConfig
    recipe: Recipe
    gpu: Gpu
    batch: int
    length: int
    run_tokens: float = 1e12
    documents: int = 1
    scan: Literal["auto", "on", "off"] = "auto"
    gather: Literal["auto", "packed", "bf16"] = "auto"

    @property
    def tokens(self) -> int:
        """Of a step."""
        return self.batch * self.length

    @property
    def steps(self) -> int:
        """Of the whole run."""
        return math.ceil(self.run_tokens / self.tokens)


@dataclass(frozen=True)
class Candidate:
    """How it is cut over the GPUs, and what is kept for the backward pass."""

    mesh: MeshShape
    microbatches: int = 1
    remat: models.Remat = "none"

    def __str__(self) -> str:
        return f"--mesh {self.mesh} --microbatches {self.microbatches} --remat {self.remat}"

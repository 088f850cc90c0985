"""Where the memory of each device goes.

What a step is given, its state and its batch, follows from shapes and layouts; what it needs in
between is XLA's plan. Measured peaks were that plan, to a part in a thousand, on one GPU.

An evaluation goes by the same microbatches and keeps nothing for a backward pass: 3.3 GB beside the
parameters where a step of `1b` needs 39.6 (2.4 of 40.6 in NVFP4, `fsdp=2`). The step decides.

Beside the pool that JAX takes, the driver and NCCL keep memory of their own. JAX's pool is three
quarters of a GPU unless it is told otherwise: XLA_PYTHON_CLIENT_MEM_FRACTION=0.92 gives it what
`usable` counts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax

from nvfp4_jax.gpus import Gpu
from nvfp4_jax.planning.step import CompiledStep

DEFAULT_POOL = 0.75  # of a GPU's memory, by JAX
LARGEST_POOL = 0.92  # leaves 6 GB of an H100 to the driver, its libraries and NCCL


@dataclass(frozen=True)
class MemoryByKind:
    """Bytes on each device.

    Attributes:
      parameters: FP32 master weights.
      moments: of the optimizer, FP32.
      inputs: batch, key and counters.
      gradients: FP32, laid out as the parameters; all are there once the norm is taken.
      activations: kept for the backward pass, and all that is computed on the way, at the peak.
    """

    parameters: int
    moments: int
    inputs: int
    gradients: int
    activations: int

    @property
    def total(self) -> int:
        """At the peak of a step."""
        return sum(self.by_kind.values())

    @property
    def by_kind(self) -> Mapping[str, int]:
        """Bytes by kind, in the order of the attributes."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


def memory_by_kind(step: CompiledStep) -> MemoryByKind:
    """Of a compiled step."""
    parameters = shard_bytes(step.state.parameters)
    moments = shard_bytes(step.state.optimizer)
    planned = step.memory
    gradients = min(parameters, planned.temporaries)
    given = planned.total_bytes - planned.temporaries
    return MemoryByKind(
        parameters=parameters,
        moments=moments,
        inputs=max(given - parameters - moments, 0),
        gradients=gradients,
        activations=planned.temporaries - gradients,
    )


def usable(gpu: Gpu, pool: float = LARGEST_POOL) -> int:
    """Bytes that a step may take of a GPU."""
    return int(gpu.memory_bytes * pool)


def shard_bytes(tree: Any) -> int:
    """Bytes on each device of shapes with a layout."""
    return sum(_bytes(leaf) for leaf in jax.tree.leaves(tree))


def _bytes(leaf: jax.ShapeDtypeStruct) -> int:
    assert leaf.sharding is not None
    return math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize

"""All that a step changes, and how it begins.

Parameters are a flat dictionary, path -> FP32 master weight:

    {"blocks/0/mamba/in_proj/kernel": f32[128, 648], ..., "head/kernel": f32[128, 256]}

Flat, because that is how they are named everywhere: in a recipe's table, in a checkpoint, in an
error. The model is the same parameters hung on a module; `assemble` hangs them, inside the traced
step, where it costs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from nvfp4_jax import models

Parameters = dict[str, jax.Array]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """What a step takes and gives back.

    Attributes:
      parameters: path -> FP32 master weight.
      optimizer: optax's state: both moments, FP32, and the number of updates.
      step: steps done, the skipped ones included; int32.
      skipped: steps skipped for a loss or gradient that was not finite; int32.
      skipped_in_a_row: of these, the ones since the last good step; int32.
    """

    parameters: Parameters
    optimizer: optax.OptState
    step: jax.Array
    skipped: jax.Array
    skipped_in_a_row: jax.Array


def initial_state(
    config: models.HybridConfig, optimizer: optax.GradientTransformation, seed: int
) -> TrainState:
    """Freshly drawn parameters and an optimizer that has seen nothing."""
    # int32 arrays from the start: a weakly typed Python 0 would compile the second step anew
    parameters = flatten(models.Hybrid(config, rngs=nnx.Rngs(seed)))
    zero = [jnp.zeros((), jnp.int32) for _ in range(3)]
    return TrainState(parameters, optimizer.init(parameters), *zero)


def abstract_model(config: models.HybridConfig, dtype: Any = jnp.bfloat16) -> models.Hybrid:
    """The model with shapes for arrays: any size in no memory."""
    return nnx.eval_shape(lambda: models.Hybrid(config, rngs=nnx.Rngs(0), dtype=dtype))


def flatten(model: nnx.Module) -> Parameters:
    """The parameters of a module by path."""
    leaves = nnx.to_flat_state(nnx.state(model, nnx.Param))
    return {"/".join(map(str, path)): variable[...] for path, variable in leaves}


def assemble(definition: nnx.GraphDef, parameters: Parameters) -> Any:
    """The module of `definition` with these parameters on it."""
    nested: dict = {}
    for path, value in parameters.items():
        *folders, name = (int(part) if part.isdigit() else part for part in path.split("/"))
        folder = nested
        for part in folders:
            folder = folder.setdefault(part, {})
        folder[name] = value
    return nnx.merge(definition, nested)

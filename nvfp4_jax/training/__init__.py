"""Training: data, step, checkpoints and the loop around them; consumes models and recipes.

    corpus -> data -> |  step: loss -> gradients -> optimizer  | -> metrics, checkpoints, plot
                          each layer bound to its precision

Read `step` first: it is the run in miniature; `loop` is what surrounds it.

The names below are imported when first used: the command line reads `config` alone, and should
not wait seconds for JAX to say that a flag is misspelt.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nvfp4_jax.training.config import TrainConfig as TrainConfig
    from nvfp4_jax.training.errors import Diverged as Diverged
    from nvfp4_jax.training.errors import UsageError as UsageError
    from nvfp4_jax.training.loop import train as train
    from nvfp4_jax.training.summary import Summary as Summary
    from nvfp4_jax.training.workdir import read_parameters as read_parameters

_HOMES = {
    "Diverged": "errors",
    "Summary": "summary",
    "TrainConfig": "config",
    "UsageError": "errors",
    "read_parameters": "workdir",
    "train": "loop",
}

__all__ = ["Diverged", "Summary", "TrainConfig", "UsageError", "read_parameters", "train"]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)

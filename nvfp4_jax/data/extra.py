"""Libraries that only the preparation of data needs: the extra `data`."""

from __future__ import annotations

import importlib
from typing import Any

from nvfp4_jax.training.errors import UsageError


def library(name: str) -> Any:
    """The module of this name, or a `UsageError` that says how to install it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UsageError(
            f"this needs {name} ({error}); install nvfp4_jax[data], in a checkout -e '.[data]'"
        ) from None

"""What must be the same on every process before a run begins, in words short enough to exchange.

All choices count, not only those that decide a number: a process that evaluates or saves at
another step than the rest would wait for them for ever.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import platform
from pathlib import Path

import jax

from nvfp4_jax.training.prepare import Run

MAY_DIFFER = ("distributed", "process", "data", "recipe", "model")


def facts(run: Run) -> dict[str, str]:
    """Name -> what it is on this process."""
    about = run.describe()
    choices = dataclasses.asdict(run.config)
    return {
        **{name: str(value) for name, value in choices.items() if name not in MAY_DIFFER},
        "model": f"{_digest(about['model'])} ({run.config.model})",
        "recipe": f"{about['recipe']['digest'][:12]} ({run.recipe.name})",
        "text": f"{about['corpus']['fingerprint'][:12]} ({run.corpus.name})",
        "kind of device": jax.local_devices()[0].device_kind,
        "number of devices": str(jax.local_device_count()),
        **_versions(),
    }


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def _versions() -> dict[str, str]:
    packages = ("jax", "jaxlib", "flax", "optax", "numpy", "ml_dtypes")
    versions = {name: importlib.metadata.version(name) for name in packages}
    return {"python": platform.python_version(), "the code of nvfp4_jax": _code(), **versions}


def _code() -> str:
    """Of the package's own files: two checkouts of one version may differ."""
    package = Path(__file__).parents[1]
    files = sorted(package.rglob("*.py"))
    return _digest([(str(path.relative_to(package)), path.read_text()) for path in files])

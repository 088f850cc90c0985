"""Compiled programs on disk, so that a run that is continued starts at once.

JAX looks a program up by what it says and what it is compiled for, and gets back the very
executable: numbers do not depend on whether it was found.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import jax
from jax.experimental.compilation_cache import compilation_cache as jax_cache

_SETTINGS = {
    "jax_persistent_cache_min_compile_time_secs": 0.0,  # however quickly it compiled
    "jax_persistent_cache_min_entry_size_bytes": 0,
}


@contextlib.contextmanager
def compilation_cache(folder: Path) -> Iterator[None]:
    """While open, compiled programs are looked up in `folder` and added to it."""
    settings = {"jax_compilation_cache_dir": str(folder.absolute()), **_SETTINGS}
    before = {name: getattr(jax.config, name) for name in settings}
    _apply(settings)
    try:
        yield
    finally:
        _apply(before)


def _apply(settings: dict) -> None:
    for name, value in settings.items():
        jax.config.update(name, value)
    jax_cache.reset_cache()  # JAX settles on a folder when it first compiles

"""Compiled programs on disk, so that a run that is continued starts at once.

JAX looks a program up by what it says and what it is compiled for, and gets back the very
executable: numbers do not depend on whether it was found.

JAX writes an entry in place, so a process killed at that moment leaves half of one, which would be
warned of and compiled again at every start from then on: torn entries are removed first.
"""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Iterator
from pathlib import Path

import jax
from jax.experimental.compilation_cache import compilation_cache as jax_cache

from nvfp4_jax.training.distributed import is_first

ZLIB = b"\x78"  # how a zlib stream begins
_SETTINGS = {
    "jax_persistent_cache_min_compile_time_secs": 0.0,  # however quickly it compiled
    "jax_persistent_cache_min_entry_size_bytes": 0,
    # A program's names say which layer an instruction is of (`compiled`), so they must be its own;
    # the lines of code it was traced from must not matter.
    "jax_compilation_cache_include_metadata_in_key": True,
    "jax_traceback_in_locations_limit": 0,
}


@contextlib.contextmanager
def compilation_cache(folder: Path) -> Iterator[None]:
    """While open, compiled programs are looked up in `folder` and added to it."""
    if is_first():
        remove_torn(folder)
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


def remove_torn(folder: Path) -> None:
    """Remove the entries of a cache that were written in part only."""
    for path in folder.glob("*-cache"):
        if not _is_whole(path.read_bytes()):
            path.unlink()


def _is_whole(entry: bytes) -> bool:
    """Whether a compressed entry has its end; one that is not zlib's is left to JAX to judge."""
    if entry[:1] != ZLIB:
        return bool(entry)
    stream = zlib.decompressobj()
    try:
        stream.decompress(entry)
    except zlib.error:
        return False
    return stream.eof

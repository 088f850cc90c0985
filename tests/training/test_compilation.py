"""Compiled programs on disk: found again, torn ones removed, settings put back."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from nvfp4_jax.training.compilation import compilation_cache, remove_torn


def compile_something(number: int) -> None:
    jax.jit(lambda x: x * 3.0 + number).lower(jnp.ones((3,))).compile()


@pytest.fixture
def entry(tmp_path):
    """A folder, and the one entry of a program compiled into it."""
    with compilation_cache(tmp_path):
        compile_something(0)
    (entry,) = tmp_path.glob("jit__lambda*-cache")
    return entry


def test_an_entry_is_written_and_whole(entry):
    remove_torn(entry.parent)
    assert entry.exists()


@pytest.mark.parametrize("share", [0, 0.3, 0.999])
def test_a_torn_entry_is_removed_and_written_again(entry, share):
    whole = entry.read_bytes()
    entry.write_bytes(whole[: int(share * len(whole))])
    with compilation_cache(entry.parent):
        assert not entry.exists()
        jax.clear_caches()
        compile_something(0)
    assert entry.exists()


def test_settings_are_put_back(tmp_path):
    before = jax.config.jax_compilation_cache_dir
    with compilation_cache(tmp_path):
        assert jax.config.jax_compilation_cache_dir == str(tmp_path)
    assert jax.config.jax_compilation_cache_dir == before

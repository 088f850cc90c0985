"""One folder of inputs, and one folder of compiled programs, for all tests of a session."""

from __future__ import annotations

from pathlib import Path

import pytest

from nvfp4_jax.training.compilation import compilation_cache

from .micro import write_inputs


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Text, model and recipe of the micro run."""
    return write_inputs(tmp_path_factory.mktemp("micro"))


@pytest.fixture(scope="session", autouse=True)
def compiled_once(inputs: Path):
    """What one test compiled, the next loads."""
    with compilation_cache(inputs / "compilation-cache"):
        yield

"""How every test runs: on the CPU, with eight simulated devices and nothing promoted silently.

Strict promotion makes JAX raise where float32 meets bfloat16 or a vector meets a matrix, which in
a library about precision is never what was meant.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import hypothesis
import jax
import pytest

GPU_TESTS = Path(__file__).parent / "gpu"
# Compute capabilities, where not any will do.
NEEDS = {"test_hopper_gemm.py": ((9, 0),), "test_blackwell.py": ((10, 0), (10, 3))}
NOT_RUN = pytest.StashKey[int]()

# These take half of the time, and come first: whichever worker is done early takes small ones.
# Of two neighbours not both wait for other processes.
SLOWEST = (Path(__file__).parent / "slowest.txt").read_text().split()

# A configuration and not XLA_FLAGS: processes that tests start should see a machine as it is.
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")


@pytest.fixture(scope="module")
def quick_to_compile():
    """For modules that make no claim on what LLVM's optimizer leaves of the bits: without it.

    XLA's own passes all run; to compile then takes about half the time. What was compiled so is
    forgotten, lest the next module runs it.
    """
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)
    jax.clear_caches()


def pytest_addoption(parser):
    """`--platform cuda` runs a suite on a GPU, such as tests/numerics before a release."""
    parser.addoption("--platform", default="cpu", help="where JAX computes (default: cpu)")


def pytest_configure(config):
    config.option.loadscopereorder = False  # of pytest-xdist: by the number of tests in a file
    jax.config.update("jax_platforms", config.getoption("--platform"))
    if sys.dont_write_bytecode:
        _keep_bytecode(config)


def _keep_bytecode(config):
    """Let processes that tests start share compiled modules: to compile jax's takes 3 s each time.

    Where Python was told to leave none beside the sources, they are kept elsewhere, for as long as
    the tests run; workers of `-n` find it so already.
    """
    folder = tempfile.TemporaryDirectory(prefix="bytecode-")
    config.add_cleanup(folder.cleanup)
    sys.dont_write_bytecode, sys.pycache_prefix = False, folder.name
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ["PYTHONPYCACHEPREFIX"] = folder.name


def pytest_collection_modifyitems(config, items):
    """The slowest first; and tests/gpu without its GPU: not run, and said so.

    A skip would read like a pass.
    """
    from nvfp4_jax.kernels.capability import capability  # not above: jaxtyping comes first

    items.sort(key=_place)
    found = capability() if config.getoption("--platform") == "cuda" else None
    away = [item for item in items if _needs_another_gpu(item.path, found)]
    config.stash[NOT_RUN] = len(away)
    if away:
        config.hook.pytest_deselected(items=away)
        items[:] = [item for item in items if not _needs_another_gpu(item.path, found)]


def _place(item) -> int:
    name = "/".join(item.path.parts[-2:])
    return SLOWEST.index(name) if name in SLOWEST else len(SLOWEST)


def _needs_another_gpu(path, found) -> bool:
    if GPU_TESTS not in path.parents:
        return False
    return found is None or found not in NEEDS.get(path.name, (found,))


def pytest_sessionfinish(session):
    """A worker of `-n` tells how many; the workers all see the same tests."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["not_run"] = session.config.stash.get(NOT_RUN, 0)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node, error):
    told = getattr(node, "workeroutput", {})
    node.config.stash[NOT_RUN] = told.get("not_run", 0)


def pytest_terminal_summary(terminalreporter, config):
    if count := config.stash.get(NOT_RUN, 0):
        terminalreporter.write_line(
            f"tests/gpu: {count} tests were NOT RUN: they need a GPU, or another than is here "
            "(--platform cuda tests/gpu)"
        )


# The same examples every time, however slow the machine.
hypothesis.settings.register_profile(
    "repeatable", derandomize=True, deadline=None, database=None, max_examples=15
)
hypothesis.settings.load_profile("repeatable")

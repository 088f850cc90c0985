"""The launching functions with Triton's interpreter in place of a GPU."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from nvfp4_jax.kernels import launch

from .interpreter import Interpreter, Launch


@pytest.fixture(scope="session")
def interpreter():
    interpreter = Interpreter()
    yield interpreter
    interpreter.close()


@pytest.fixture
def interpreted(interpreter, monkeypatch):
    """`nvfp4_jax.kernels.launch`, whose kernels run in the interpreter."""

    def call(kernel, inputs, out_shape, *, grid, zeroed_outputs=(), **meta):
        shapes = out_shape if isinstance(out_shape, list | tuple) else [out_shape]
        del meta["warps"], meta["compute_capability"]
        results = interpreter(
            Launch(
                module=kernel.fn.__module__,
                kernel=kernel.fn.__name__,
                inputs=tuple(np.asarray(array) for array in inputs),
                outputs=tuple((s.shape, np.dtype(s.dtype)) for s in shapes),
                zeroed=bool(zeroed_outputs),
                grid=grid,
                meta=meta,
            )
        )
        results = [jnp.asarray(array) for array in results]
        return results if isinstance(out_shape, list | tuple) else results[0]

    monkeypatch.setattr(launch, "call", call)
    return launch

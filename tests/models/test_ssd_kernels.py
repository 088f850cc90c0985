"""The fused scan without a GPU: its kernels interpreted on the CPU, and compiled for GPUs.

The interpreter runs each kernel as Python over NumPy arrays, so these cases are small; what they
check is the arithmetic, masks and addresses. tests/gpu runs the same kernels on real hardware.
"""

from __future__ import annotations

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from nvfp4_jax.models import ssd_fused, ssd_tiles
from nvfp4_jax.models.ssd import ssd
from tests.kernels.interpreter import Interpreter, Launch
from tests.models.small import gap
from tests.models.ssd_cases import RESULTS, Case, draw, exact

DATA = Path(__file__).parents[1] / "data" / "ssd"


@pytest.fixture(scope="module")
def interpreter():
    process = Interpreter()
    yield process
    process.close()


def run(interpreter, case: Case, chunk: int) -> list[np.ndarray]:
    """RESULTS by the kernels, in float32."""

    def call(kernel, arguments, results, grid, launch, constants):
        inputs = tuple(np.ascontiguousarray(a) for a in arguments)
        outputs = tuple((r.shape, np.dtype(r.dtype)) for r in results)
        module, name = kernel.fn.__module__, kernel.fn.__name__
        return interpreter(Launch(module, name, inputs, outputs, False, grid, constants))

    x, dt, A, B, C, D, start = (part.astype(np.float32) for part in case.inputs)
    dy, dfinal = (part.astype(np.float32) for part in case.cotangents)
    sizes = ssd_tiles.Sizes(*x.shape[:3], B.shape[2], x.shape[3], B.shape[3])
    packed = case.seq_idx is not None
    seq_idx = case.seq_idx if packed else np.zeros((x.shape[0], 1), np.int32)
    plan = ssd_fused.Plan(call, sizes, ssd_tiles.tiles(x.dtype, 90), chunk, packed)
    y, final, decays, states = ssd_fused.forward(plan, x, dt, A, B, C, D, seq_idx, start)
    dx, ddt, dA, dB, dC, dD, dstart = ssd_fused.backward(
        plan, x, A, B, C, D, seq_idx, decays, states, dy, dfinal
    )
    gradients = [dx, ddt, np.sum(dA, axis=0), dB, dC, np.sum(dD, axis=0), dstart]
    return [y, final, *map(np.asarray, gradients)]


def assert_close(actual, expected, tolerance=1e-5):
    for name, a, e in zip(RESULTS, actual, expected, strict=True):
        assert gap(a, e) < tolerance, name


@pytest.mark.parametrize("name", ["headgroups", "packed", "ragged_h0"])
def test_golden_values_and_gradients(interpreter, name):
    data = dict(np.load(DATA / f"{name}.npz"))
    names = ("x", "dt", "A", "B", "C", "D", "h0")
    seq_idx = data["seq_idx"].astype(np.int32) if "seq_idx" in data else None
    case = Case([data[n] for n in names], [data["dy"], data["dfinal"]], seq_idx)
    assert_close(run(interpreter, case, chunk=32), [data[name] for name in RESULTS])


@pytest.mark.parametrize("packed", [False, True], ids=["one document", "documents"])
def test_a_head_dim_in_two_parts_on_a_ragged_length(interpreter, packed):
    """40 = 32 + 8, the second in a tile of 16; three heads a group; state no power of two."""
    assert ssd_tiles.parts(40) == (32, 16)
    case = draw(1, 37, 3, 40, 1, 20, packed=packed)
    assert_close(run(interpreter, case, chunk=16), exact(case))


def test_decays_that_overflow_above_the_diagonal(interpreter):
    """exp(l_q - l_k) for q < k would be up to exp(375) here."""
    case = draw(1, 16, 2, 16, 1, 16, packed=False)
    case.inputs[1][:] = 2.5
    case.inputs[2][:] = -10.0
    actual, expected = run(interpreter, case, chunk=16), exact(case)
    place = RESULTS.index("g_A")  # about exp(-25): what is left when numbers near 10 cancel
    np.testing.assert_allclose(actual.pop(place), expected.pop(place), atol=1e-6)
    for a, e in zip(actual, expected, strict=True):
        assert gap(a, e) < 1e-5


def test_a_step_of_zero_adds_nothing_and_has_a_gradient(interpreter):
    case = draw(1, 16, 2, 16, 1, 16, packed=False)
    case.inputs[1][:, 3:6] = 0
    assert_close(run(interpreter, case, chunk=16), exact(case))


@pytest.mark.parametrize(
    ("size", "sides"),
    [(3, (16, 0)), (16, (16, 0)), (24, (32, 0)), (64, (64, 0)), (80, (64, 16)), (128, (128, 0))],
)
def test_parts_of_a_side(size, sides):
    assert ssd_tiles.parts(size) == sides


def test_chunk_as_a_power_of_two_within_the_tiles():
    assert ssd_tiles.chunk(100, 4096, jnp.bfloat16) == 128
    assert ssd_tiles.chunk(256, 4096, jnp.bfloat16) == 128
    assert ssd_tiles.chunk(128, 40, jnp.bfloat16) == 64
    assert ssd_tiles.chunk(128, 4096, jnp.float32) == 32


def test_the_kernels_by_name_say_why_they_cannot_run_here():
    x, dt, A, B, C, D, _ = (jnp.asarray(a) for a in draw(1, 4, 1, 2, 1, 2, packed=False).inputs)
    with pytest.raises(ValueError, match=r"cannot run: it is for capability 8.0 to 10.x"):
        ssd(x, dt, A, B, C, D, implementation="triton")


def test_obstacles_name_the_argument():
    assert ssd_tiles.obstacle(jnp.bfloat16, 80, 128) is None
    assert "float64" in (ssd_tiles.obstacle(jnp.float64, 80, 128) or "")
    assert "state 256" in (ssd_tiles.obstacle(jnp.bfloat16, 80, 256) or "")

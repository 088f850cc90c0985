"""The chunked scan against the recurrence it stands for."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nvfp4_jax.models import ssd as module
from tests.models.small import gap

FILES = sorted((Path(__file__).parents[1] / "data" / "ssd").glob("*.npz"))
ssd = jax.jit(module.ssd, static_argnames="chunk")
INPUTS = ("x", "dt", "A", "B", "C", "D", "h0")


def case(file: Path, dtype) -> tuple[dict, list, dict]:
    data = dict(np.load(file))
    options = {"chunk": int(data["chunk_size"])}
    if "seq_idx" in data:
        options["seq_idx"] = jnp.asarray(data["seq_idx"].astype(np.int32))
    return data, [jnp.asarray(data[name].astype(dtype)) for name in INPUTS], options


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-10), ("float32", 1e-5)])
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_golden_values_and_gradients(file, dtype, tolerance):
    with jax.enable_x64(dtype == "float64"):
        data, inputs, options = case(file, dtype)

        @jax.jit
        def run(inputs, cotangents):
            out, pull = jax.vjp(lambda *a: ssd(*a[:-1], **options, initial_state=a[-1]), *inputs)
            return *out, pull(cotangents)

        cotangents = tuple(jnp.asarray(data[name].astype(dtype)) for name in ("dy", "dfinal"))
        y, final, gradients = run(inputs, cotangents)
        assert y.dtype == final.dtype == dtype
    skip = data["D"][:, None] * data["x"]  # large beside the scan itself; compare without it too
    assert gap(y, data["y"]) < tolerance
    assert gap(np.asarray(y, np.float64) - skip, data["y"] - skip) < 10 * tolerance
    assert gap(final, data["final_state"]) < tolerance
    for name, gradient in zip(INPUTS, gradients, strict=True):
        assert gap(gradient, data[f"g_{name}"]) < tolerance, name


def loop(x, dt, A, B, C, D, documents):
    """The recurrence, token by token."""
    heads, groups = x.shape[2], B.shape[2]
    B, C = (np.repeat(part, heads // groups, axis=2) for part in (B, C))
    state = np.zeros((x.shape[0], heads, x.shape[3], B.shape[3]))
    y = np.zeros_like(x)
    for t in range(x.shape[1]):
        if t:
            state *= (documents[:, t] == documents[:, t - 1])[:, None, None, None]
        step = dt[:, t, :, None, None]
        state = state * np.exp(step * A[:, None, None])
        state = state + step * x[:, t, :, :, None] * B[:, t, :, None, :]
        y[:, t] = np.einsum("bhpn,bhn->bhp", state, C[:, t]) + D[:, None] * x[:, t]
    return y, state


def draw(length: int, seed: int = 0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(2, length, 4, 3))
    dt = rng.uniform(0.01, 0.5, size=(2, length, 4))
    A, D = -rng.uniform(0.5, 2, size=4), rng.normal(size=4)
    B, C = (rng.normal(size=(2, length, 2, 5)) for _ in range(2))
    return x, dt, A, B, C, D


@pytest.mark.parametrize("length", [1, 8, 29])
@pytest.mark.parametrize("first", [0, 41], ids=["from zero", "from any number"])
def test_any_length_and_documents_as_the_loop(length, first):
    inputs = draw(length)
    documents = first + np.cumsum(np.random.default_rng(1).random((2, length)) < 0.3, axis=1)
    y, state = loop(*inputs, documents)
    with jax.enable_x64(True):
        actual, final = ssd(*map(jnp.asarray, inputs), chunk=8, seq_idx=jnp.asarray(documents))
    np.testing.assert_allclose(actual, y, atol=1e-12)
    np.testing.assert_allclose(final, state, atol=1e-12)


def test_a_row_in_two_calls():
    """The final state of one half is the initial state of the other."""
    inputs = [jnp.asarray(part, jnp.float32) for part in draw(24)]
    whole, end = ssd(*inputs, chunk=8)
    x, dt, A, B, C, D = inputs
    first, state = ssd(x[:, :11], dt[:, :11], A, B[:, :11], C[:, :11], D, chunk=8)
    second, final = ssd(
        x[:, 11:], dt[:, 11:], A, B[:, 11:], C[:, 11:], D, chunk=8, initial_state=state
    )
    np.testing.assert_allclose(jnp.concatenate([first, second], 1), whole, atol=1e-5)
    np.testing.assert_allclose(final, end, atol=1e-5)


def test_strong_decay_stays_finite():
    """exp of the gaps above the diagonal would overflow, and 0 * inf is NaN in the gradient."""
    x, dt, A, B, C, D = (jnp.asarray(part, jnp.float32) for part in draw(16))

    def total(A):
        return ssd(x, 100 * dt, A, B, C, D, chunk=16)[0].sum()

    value, gradient = jax.jit(jax.value_and_grad(total))(10 * A)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


def test_bfloat16_operands_with_float32_sums():
    """Rounding x, B, C and the weights to 8 bits: 2^-9 each, so a few 2^-9 in all."""
    inputs = [jnp.asarray(part, jnp.float32) for part in draw(32)]
    x, dt, A, B, C, D = inputs
    low = [part.astype(jnp.bfloat16) for part in (x, B, C)]
    exact, _ = ssd(low[0].astype(jnp.float32), dt, A, *(p.astype(jnp.float32) for p in low[1:]), D)
    y, state = ssd(low[0], dt, A, *low[1:], D, chunk=8)
    assert y.dtype == jnp.bfloat16
    assert state.dtype == jnp.float32
    assert gap(y.astype(jnp.float32), exact) < 3 * 2**-9


def test_intra_chunk_matrices_are_not_kept():
    """Nothing of the size batch x chunks x heads x Q x Q is saved for the backward pass."""
    inputs = [jnp.asarray(part, jnp.float32) for part in draw(64)]
    _, pull = jax.vjp(lambda *a: ssd(*a, chunk=32), *inputs)
    kept = [leaf.shape for leaf in jax.tree.leaves(pull)]
    assert (2, 64, 4, 3) in kept
    assert all(shape[-2:] != (32, 32) for shape in kept)

"""Convolution, norms and attention without a GPU: their kernels interpreted on the CPU.

Values and gradients against the plain definitions in float64, on small and ragged shapes.
tests/gpu runs the same kernels on real hardware.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import jax_triton
import numpy as np
import pytest

from nvfp4_jax.models import attention_triton, conv_triton, norm_triton, segments, target
from nvfp4_jax.models.attention import attend
from nvfp4_jax.models.conv import conv_silu
from nvfp4_jax.models.norm import rms_norm
from tests.kernels.interpreter import Interpreter, Launch

TOLERANCE = 2e-6  # FP32 arithmetic, a few hundred terms


@pytest.fixture(scope="module")
def process():
    interpreter = Interpreter()
    yield interpreter
    interpreter.close()


@pytest.fixture(autouse=True)
def interpreted(process, monkeypatch):
    """`jax_triton.triton_call`, in the interpreter."""

    def call(*inputs, kernel, out_shape, grid, num_warps, compute_capability, **meta):
        several = isinstance(out_shape, list | tuple)
        shapes = out_shape if several else [out_shape]
        meta.pop("num_stages", None)
        results = process(
            Launch(
                module=kernel.fn.__module__,
                kernel=kernel.fn.__name__,
                inputs=tuple(np.asarray(array) for array in inputs),
                outputs=tuple((s.shape, np.dtype(s.dtype)) for s in shapes),
                zeroed=False,
                grid=(*grid, 1, 1)[:3],
                meta=meta,
            )
        )
        return results if several else results[0]

    monkeypatch.setattr(jax_triton, "triton_call", call)
    for module in (attention_triton, conv_triton, norm_triton):  # arrays, not what stands for them
        monkeypatch.setattr(module, "splitting", lambda fn, *_, **__: fn)
        monkeypatch.setattr(module, "sequential_vmap", lambda fn: fn)
        monkeypatch.setattr(module, "_calls", module._calls.__wrapped__)


def draw(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def ids(batch: int, length: int, *ends: int) -> np.ndarray:
    """Documents that end at `ends` in the first row and one token later in each next row."""
    place = np.arange(length)[None] - np.arange(batch)[:, None]
    return np.sum(place[..., None] >= np.array(ends), axis=-1).astype(np.int32)


def expected(function, arguments, cotangent):
    """Values and gradients in float64."""
    with jax.enable_x64(True):
        wide = [jnp.asarray(a, jnp.float64) for a in arguments]
        value, pull = jax.vjp(function, *wide)
        slopes = jax.tree.map(lambda c: jnp.asarray(c, jnp.float64), cotangent)
        return jax.tree.map(np.asarray, (value, pull(slopes)))


def assert_close(actual, wanted, tolerance=TOLERANCE):
    for a, w in zip(jax.tree.leaves(actual), jax.tree.leaves(wanted), strict=True):
        assert np.linalg.norm(a - w) < tolerance * max(np.linalg.norm(w), 1)


@pytest.mark.parametrize("ends", [None, (3, 4, 9, 130)], ids=["whole", "packed"])
@pytest.mark.parametrize("length", [2, 140])
def test_convolution(length, ends):
    """Ragged in time, columns read out of a wider array, three parts of different widths."""
    start, widths = 5, (128, 64, 64)
    x, weight, bias = draw(0, 2, length, 270), draw(1, 4, 256), draw(2, 256)
    dy = tuple(draw(3 + i, 2, length, width) for i, width in enumerate(widths))
    documents = None if ends is None else ids(2, length, *ends)

    def definition(x, weight, bias):
        return conv_silu(x, weight, bias, documents, start=start, widths=widths)

    y = conv_triton.forward(x, weight, bias, documents, start, widths)
    gradients = conv_triton.backward(x, weight, bias, documents, start, dy)
    value, (dx, *others) = expected(definition, (x, weight, bias), dy)
    assert_close((y, gradients), (value, (dx[..., start : start + 256], *others)))
    assert not dx[..., :start].any()


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("gated", [False, True])
def test_norm(groups, gated):
    """Groups that are no power of two; a ragged number of rows; a gate within a wider array."""
    x, weight, dy = draw(0, 2, 19, 60), 1 + draw(1, 60), draw(2, 2, 19, 60)
    z = draw(3, 2, 19, 77) if gated else None

    def definition(x, weight, *gate):
        return rms_norm(x, weight, eps=1e-5, gate=gate[0] if gated else None, groups=groups)

    arguments = (x, weight, z) if gated else (x, weight)
    value, (dx, dweight, *dz) = expected(definition, arguments, dy)
    y = norm_triton.forward(x, z, weight, groups, 1e-5)
    actual = norm_triton.backward(x, z, weight, groups, 1e-5, dy)
    wanted = (dx, dz[0][..., :60] if gated else None, dweight)
    assert_close((y, *actual), (value, *wanted))


@pytest.mark.parametrize("length", [1, 200])
@pytest.mark.parametrize("ends", [None, (3, 70, 71, 190)], ids=["whole", "packed"])
def test_attention(length, ends):
    """Documents that end within tiles and span them; two heads share a key."""
    q, k, v = draw(0, 1, length, 2, 16), draw(1, 1, length, 1, 16), draw(2, 1, length, 1, 16)
    do = draw(3, 1, length, 2, 16)
    documents = np.zeros((1, length), np.int32) if ends is None else ids(1, length, *ends)
    begins, stops = (np.asarray(a) for a in segments.bounds(jnp.asarray(documents)))

    def definition(q, k, v):
        return attend(q, k, v, documents)

    value, gradients = expected(definition, (q, k, v), do)
    out, lse = attention_triton.forward(q, k, v, begins)
    actual = attention_triton.backward(q, k, v, begins, stops, out, lse, do)
    assert_close((out, actual), (value, gradients), 5e-6)


@pytest.mark.parametrize("capability", [(8, 0), (9, 0), (10, 0)])
def test_kernels_compile_for_gpus_that_are_not_here(capability, monkeypatch):
    """Lowered with the sizes of the 1b preset; the assembler does not run here."""
    monkeypatch.undo()
    monkeypatch.setattr(target, "capability", lambda: capability)

    def some(x, weight, bias, norm_weight, q, k, ids):
        parts = conv_silu(x, weight, bias, ids, start=2560, widths=(2560, 1024, 1024))
        y = rms_norm(parts[0], norm_weight, eps=1e-5, gate=x, groups=8)
        return jnp.sum(y), jnp.sum(attend(q, k, k, ids))

    def shape(*sizes, dtype=jnp.float32):
        return jax.ShapeDtypeStruct(sizes, dtype)

    arguments = (
        shape(1, 512, 7200, dtype=jnp.bfloat16),
        shape(4, 4608),
        shape(4608),
        shape(2560),
        shape(1, 512, 10, 128, dtype=jnp.bfloat16),
        shape(1, 512, 2, 128, dtype=jnp.bfloat16),
        shape(1, 512, dtype=jnp.int32),
    )

    def total(*arguments):
        y, mixed = some(*arguments)
        return y.astype(jnp.float32) + mixed.astype(jnp.float32)

    step = jax.jit(jax.value_and_grad(total, argnums=(0, 3, 4, 5)))
    text = step.trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("@triton_kernel_call") >= 7  # three of attention, two each of the others

"""Kernels split over devices: what every device gets, and that nothing is gathered."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from nvfp4_jax.compile_for import compile_for, mesh_of
from nvfp4_jax.models.attention import attend
from nvfp4_jax.models.conv import conv_silu
from nvfp4_jax.models.norm import rms_norm
from nvfp4_jax.models.splitting import splitting


def cpu_mesh():
    return jax.make_mesh((4, 2), ("a", "b"), axis_types=(AxisType.Auto, AxisType.Auto))


def numbers(*shape):
    return jnp.asarray(np.random.default_rng(len(shape)).standard_normal(shape), jnp.float32)


def rows_and_their_sum(x, w):
    """(x w, the sum over all rows of x): of a shard, its own."""
    return x * w[None, None], jnp.sum(x, axis=(0, 1))


@pytest.mark.parametrize(
    "spec", [P(), P("a"), P(("a", "b")), P("a", "b"), P(None, ("a", "b")), P(None, None, "b")]
)
def test_rows_are_split_and_sums_added_up(spec):
    x, w = numbers(8, 16, 6), numbers(6)
    run = jax.jit(splitting(rows_and_their_sum, ("bl.", "."), ("bl.", "."), sums=(1,)))
    y, total = run(jax.device_put(x, NamedSharding(cpu_mesh(), spec)), w)
    np.testing.assert_array_equal(y, x * w[None, None])
    np.testing.assert_allclose(total, jnp.sum(x, axis=(0, 1)), rtol=1e-5, atol=1e-5)


def with_its_group(x, y):
    """Heads times the group that they share."""
    return (x * jnp.repeat(y, x.shape[1] // y.shape[1], axis=1),)


@pytest.mark.parametrize("groups", [1, 2, 4, 8])
@pytest.mark.parametrize("spec", [P("a"), P(None, "b"), P("a", "b"), P("b", "a")])
def test_only_whole_groups_of_heads_are_split(spec, groups):
    x, y = numbers(4, 8), numbers(4, groups)
    mesh = cpu_mesh()
    run = jax.jit(splitting(with_its_group, ("bh", "bg"), ("bh",), groups_of=1))
    (z,) = run(jax.device_put(x, NamedSharding(mesh, spec)), y)
    np.testing.assert_array_equal(z, with_its_group(x, y)[0])


def conv(x, weight, bias, documents):
    return conv_silu(x, weight, bias, documents, start=16, widths=(128, 64, 64))


def norm(x, weight, gate):
    return (rms_norm(x, weight, eps=1e-5, gate=gate, groups=2),)


def attention(q, k, v, documents):
    return (attend(q, k, v, documents),)


B16, F32, I32 = jnp.bfloat16, jnp.float32, jnp.int32
ROWS, HEADS, WHOLE = P("data"), P("data", None, "tensor"), P()
DOCUMENTS, WEIGHT = ((4, 128), I32, ROWS), ((64,), F32, WHOLE)
KEYS = ((4, 128, 2, 64), B16, HEADS)
TOKENS = P("data", "tensor")
# A function; shape, dtype and sharding of its arguments; shapes that one of four devices sees.
KERNELS = {
    "conv": (
        conv,
        [((4, 128, 288), B16, ROWS), ((4, 256), F32, WHOLE), ((256,), F32, WHOLE), DOCUMENTS],
        ["bf16[2,128,128]", "bf16[2,128,256]"],
    ),
    "norm": (
        norm,
        [((4, 128, 64), B16, TOKENS), WEIGHT, ((4, 128, 96), B16, TOKENS)],
        ["bf16[2,64,64]"],
    ),
    "attention": (
        attention,
        [((4, 128, 8, 64), B16, HEADS), KEYS, KEYS, DOCUMENTS],
        ["bf16[2,128,4,64]", "bf16[2,128,1,64]"],
    ),
}


@pytest.mark.parametrize("name", KERNELS)
def test_each_device_runs_the_kernel_on_its_part(name):
    function, given, local = KERNELS[name]
    mesh = mesh_of("h100", {"data": 2, "tensor": 2})
    arguments = [
        jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))
        for shape, dtype, spec in given
    ]
    floats = [i for i, a in enumerate(arguments) if a.dtype != I32]

    def both_ways(*arrays):
        def forward(*parts):
            whole = list(arrays)
            for i, part in zip(floats, parts, strict=True):
                whole[i] = part
            return function(*whole)

        y, pull = jax.vjp(forward, *(arrays[i] for i in floats))
        return y, pull(y)

    text = compile_for(mesh, both_ways, *arguments).as_text()
    calls = [line for line in text.splitlines() if '"triton_kernel_call"' in line]
    assert len(calls) == (3 if name == "attention" else 2)
    results = " ".join(line.split(" custom-call(")[0] for line in calls)
    assert [shape for shape in local if shape not in results] == []
    assert not re.search(r" all-gather(-start)?\(", text)

"""Native operands and products split over devices: on CPUs, with a stand-in for the kernels.

Codes and scales are those of one device whatever the mesh, and a linear that runs on them is the
emulated one up to the order of FP32 sums. The stand-in's own bits are no claim of this file
(`quick_to_compile`).
"""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import nvfp4_jax as nvfp4
from nvfp4_jax import Quantizer, hadamard
from nvfp4_jax.kernels import (
    available,
    blackwell,
    blackwell_gemm,
    blackwell_quantize,
    capability,
    launch,
    select,
    views,
)
from nvfp4_jax.kernels.request import Request
from tests.gemm.precisions import PAPER
from tests.sharding import standin
from tests.sharding.test_fused import close, linear, same, tensor

pytestmark = pytest.mark.usefixtures("quick_to_compile")

DUAL = (Quantizer(rounding="stochastic"), Quantizer(rht=16, rounding="stochastic"))
SPECS = (P("a", "b"), P(None, "b"), P(("a", "b")), P("b", "a"))


@pytest.fixture(autouse=True)
def on_a_blackwell(monkeypatch):
    """As if this machine had a B200, whose kernels are the stand-in."""
    for name in ("amax_bits", "operands", "packed", "unpacked"):
        monkeypatch.setattr(launch, name, getattr(standin, name))
    monkeypatch.setattr(blackwell_quantize, "native_operands", standin.native_operands)
    monkeypatch.setattr(blackwell_gemm, "block_scaled_matmul", standin.block_scaled_matmul)
    for module in (capability, available, select, views, blackwell):
        monkeypatch.setattr(module, "capability", lambda: (10, 0))


def mesh():
    return jax.make_mesh((4, 2), ("a", "b"), axis_types=(AxisType.Auto, AxisType.Auto))


def both_copies(x):
    one, other = DUAL
    requests = [
        Request(one, -1, jax.random.key(0)),
        Request(other, -2, jax.random.key(1), hadamard.fixed_signs()),
    ]
    return blackwell.to_native(x, requests)


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_codes_do_not_depend_on_the_mesh(spec):
    x = tensor((1024, 1024))
    placed = jax.device_put(x, NamedSharding(mesh(), spec))
    run = jax.jit(both_copies)
    same(run(placed), run(x))
    assert "all-gather" not in run.lower(placed).compile().as_text()


def test_tokens_stay_cut_beside_features_that_are_no_whole_steps():
    """384 = 1.5 steps of 256, as the 12B's in_proj has 88.5: gathering tokens would be ruinous."""
    x = tensor((1024, 384))
    placed = jax.device_put(x, NamedSharding(mesh(), P(("a", "b"))))
    run = jax.jit(both_copies)
    same(run(placed), run(x))
    assert "all-gather" not in run.lower(placed).compile().as_text()


@pytest.mark.parametrize("shape", [(384, 1024), (128, 1024), (200, 72)], ids=str)
def test_shards_that_are_no_whole_tiles_are_gathered(shape):
    x = tensor(shape)
    placed = jax.device_put(x, NamedSharding(mesh(), P(None, "b")))
    run = jax.jit(both_copies)
    same(run(placed), run(x))


def arguments(m, k, n):
    return tensor((m, k)), tensor((k, n), jnp.float32), tensor((m, n)) + tensor((m, n))


@cache
def emulated(m, k, n):
    """What a linear of these sizes gives on one device, without codes."""
    return jax.jit(linear(PAPER, "xla"))(*arguments(m, k, n))


@pytest.mark.parametrize("sizes", [(512, 384, 256), (50, 40, 24), (128, 128, 384)], ids=str)
@pytest.mark.parametrize("residuals", ["bf16", "packed"])
def test_a_linear_on_codes_is_the_emulated_one(residuals, sizes):
    precision = replace(PAPER, residuals=residuals)
    named, best = (
        jax.jit(linear(precision, name)).lower(*arguments(*sizes)) for name in ("blackwell", None)
    )
    assert named.as_text() == best.as_text()
    close(named.compile()(*arguments(*sizes)), emulated(*sizes))


def test_what_is_kept_is_codes():
    """Of the input and of the weight: 4.5 bits an element, whatever the recipe says."""
    x, w, _ = arguments(512, 256, 1024)
    dot_general = nvfp4.make_dot_general(PAPER, jax.random.key(2))

    def kept(x, w):
        return jax.vjp(lambda x, w: dot_general(x, w, (((1,), (0,)), ((), ()))), x, w)[1]

    leaves = jax.tree.leaves(jax.eval_shape(kept, x, w))
    large = [leaf for leaf in leaves if leaf.size > 1000]
    assert 8 * sum(leaf.size * leaf.dtype.itemsize for leaf in large) == 4.5 * (x.size + w.size)


@pytest.mark.parametrize(
    "specs",
    [(P("a"), P(None, "b")), (P("a", "b"), P("b")), (P(None, "a"), P("a", "b")), (P(), P("a"))],
)
def test_a_linear_split_over_devices(specs):
    x, w, dy = arguments(1024, 512, 512)
    specs = [NamedSharding(mesh(), spec) for spec in (*specs, P("a"))]
    placed = map(jax.device_put, (x, w, dy), specs)
    close(jax.jit(linear(PAPER, "blackwell"))(*placed), emulated(1024, 512, 512))


def test_gathered_weights_travel_as_codes():
    """FSDP: what is gathered of a weight for a product are bytes of codes and scales."""
    x, w, dy = arguments(1024, 512, 512)
    placed = [
        jax.device_put(a, NamedSharding(mesh(), spec))
        for a, spec in ((x, P("a")), (w, P("a")), (dy, P("a")))
    ]
    run = jax.jit(linear(PAPER, "blackwell"))
    lines = run.lower(*placed).compile().as_text().splitlines()
    gathered = [line for line in lines if " all-gather(" in line]
    assert gathered
    # XLA's CPU backend keeps FP8 as f16.
    assert all(re.search(r" (u8|f8e4m3fn|f16)\[", line) for line in gathered), gathered


def test_explicit_axes():
    both = (AxisType.Explicit, AxisType.Explicit)
    explicit = jax.make_mesh((4, 2), ("a", "b"), axis_types=both)
    x, w, dy = arguments(1024, 512, 512)
    expected = emulated(1024, 512, 512)
    with jax.set_mesh(explicit):
        specs = (P("a"), P(None, "b"), P("a", "b"))
        shardings = [NamedSharding(explicit, spec) for spec in specs]
        placed = list(map(jax.device_put, (x, w, dy), shardings))
        for residuals in ("bf16", "packed"):
            run = linear(replace(PAPER, residuals=residuals), "blackwell")
            close(jax.jit(run)(*placed), expected)


def test_examples_under_vmap():
    stacked = jax.tree.map(lambda a: jnp.stack([a, 2 * a]), arguments(64, 48, 32))
    mapped = jax.jit(jax.vmap(linear(PAPER, "blackwell")))(*stacked)
    alone = jax.jit(linear(PAPER, "xla"))
    for i in range(2):
        close([np.asarray(leaf[i]) for leaf in mapped], alone(*(a[i] for a in stacked)))

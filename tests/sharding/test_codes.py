"""Codes do not depend on how a tensor is laid out over devices, stochastic rounding included."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import nvfp4_jax as nvfp4
from nvfp4_jax import Gemm, LinearPrecision, Quantizer

MODES = (AxisType.Auto, AxisType.Explicit)
LAYOUTS = (
    (AxisType.Auto, P("a", "b")),
    (AxisType.Auto, P(None, ("a", "b"))),
    (AxisType.Explicit, P(("a", "b"), None)),
    (AxisType.Explicit, P("b", "a")),
)
QUANTIZERS = (
    Quantizer(),
    Quantizer(granularity="16x16"),
    Quantizer(granularity="16x16", rounding="stochastic", bits=16),
    Quantizer(rht=16, rounding="stochastic"),
    Quantizer("mxfp4"),
    Quantizer("fp8_e4m3", "128x128"),
    Quantizer("fp8_e5m2"),
)
KEY = jax.random.key(7)
NUMBERS = (((1,), (0,)), ((), ()))


def mesh_of(mode: AxisType, other: AxisType | None = None) -> jax.sharding.Mesh:
    return jax.make_mesh((4, 2), ("a", "b"), axis_types=(mode, other or mode))


def raw(tree) -> list[bytes]:
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(jax.device_get(tree))]


@pytest.fixture(scope="module")
def tensor() -> jax.Array:
    """Heavy-tailed, and with 96 / 16 = 6 blocks a row, which four or eight devices cannot share."""
    normal = jax.random.normal(jax.random.key(0), (64, 96))
    return (normal**3).astype(jnp.bfloat16)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("quantizer", QUANTIZERS, ids=str)
def test_codes_are_those_of_one_device(tensor, quantizer, axis):
    quantize = jax.jit(lambda x: nvfp4.quantize(x, quantizer, axis, KEY))
    expected = raw(quantize(tensor))
    for mode, spec in LAYOUTS:
        sharded = jax.device_put(tensor, NamedSharding(mesh_of(mode), spec))
        assert raw(quantize(sharded)) == expected, (mode, spec)


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_codes_under_a_mesh_in_context_and_eagerly(tensor, mode):
    mesh, quantizer = mesh_of(mode), Quantizer(rht=16, rounding="stochastic")
    expected = raw(nvfp4.quantize(tensor, quantizer, 0, KEY))
    with jax.set_mesh(mesh):
        sharded = jax.device_put(tensor, NamedSharding(mesh, P("a", "b")))
        q = nvfp4.quantize(sharded, quantizer, 0, KEY)
        assert raw(q) == expected
        dequantized = nvfp4.dequantize(q)
    assert raw(dequantized) == raw(nvfp4.dequantize(nvfp4.quantize(tensor, quantizer, 0, KEY)))


def recipe_precision() -> LinearPrecision:
    """The paper's recipe (arXiv 2509.25149, section 4)."""
    weight = Quantizer(granularity="16x16")
    return LinearPrecision(
        fprop=Gemm(input=Quantizer(), weight=weight),
        dgrad=Gemm(grad=Quantizer(rounding="stochastic"), weight=weight),
        wgrad=Gemm(input=Quantizer(rht=16), grad=Quantizer(rht=16, rounding="stochastic")),
    )


def forward_and_backward(out_sharding=None):
    dot_general = nvfp4.make_dot_general(recipe_precision(), KEY)

    @jax.jit
    def run(x, w, dy):
        y, pullback = jax.vjp(
            lambda x, w: dot_general(
                x, w, NUMBERS, preferred_element_type=jnp.float32, out_sharding=out_sharding
            ),
            x,
            w,
        )
        return y, *pullback(dy)

    return run


@pytest.fixture(scope="module")
def on_one_device(tensor) -> tuple:
    """x, w and dy, and what one device makes of them."""
    w = jax.random.normal(jax.random.key(1), (96, 80))
    dy = jax.random.normal(jax.random.key(2), (64, 80))
    return (tensor, w, dy), forward_and_backward()(tensor, w, dy)


def bound(result) -> float:
    """dx is rounded to bf16 at the end, where a sum next to a tie may fall either way."""
    return 96 * 2**-24 if result.dtype == jnp.float32 else 2**-9


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_three_gemms_agree_up_to_the_order_of_sums(on_one_device, mode):
    """Operands are equal to the bit; products may sum over devices in another order: n * 2^-24."""
    arrays, expected = on_one_device
    layouts = {
        "columns": (P("a", None), P(None, "b"), P("a", "b")),
        "fsdp": (P("a", None), P("a", None), P("a", None)),
        "rows": (P("a", "b"), P("b", None), P("a", None)),
    }
    mesh = mesh_of(mode)
    for name, specs in layouts.items():
        placed = [
            jax.device_put(array, NamedSharding(mesh, spec))
            for array, spec in zip(arrays, specs, strict=True)
        ]
        asked = specs[2] if mode == AxisType.Explicit else None
        results = forward_and_backward(asked)(*placed)
        for result, reference in zip(results, expected, strict=True):
            assert result.dtype == reference.dtype
            a, b = (np.asarray(v, np.float64) for v in (result, reference))
            assert np.linalg.norm(a - b) <= bound(result) * np.linalg.norm(b), name
        if mode == AxisType.Explicit:
            assert jax.typeof(results[0]).sharding.spec == specs[2]
            assert jax.typeof(results[2]).sharding.spec == specs[1]


@pytest.mark.parametrize("modes", [MODES, MODES[::-1]], ids=str)
def test_automatic_and_explicit_axes_of_one_mesh(on_one_device, modes):
    arrays, expected = on_one_device
    mesh, specs = mesh_of(*modes), (P("a", None), P(None, "b"), P("a", "b"))
    with jax.set_mesh(mesh):
        placed = [
            jax.device_put(array, NamedSharding(mesh, spec))
            for array, spec in zip(arrays, specs, strict=True)
        ]
        results = forward_and_backward()(*placed)
    for result, reference in zip(results, expected, strict=True):
        a, b = (np.asarray(v, np.float64) for v in (result, reference))
        assert np.linalg.norm(a - b) <= bound(result) * np.linalg.norm(b)


def test_shard_map_that_checks_what_varies_sums_a_shared_weights_gradient(on_one_device):
    """As `lax.dot_general` does, and equal to the sum over shards that nobody keeps track of."""
    arrays, _ = on_one_device
    mesh, rows = mesh_of(AxisType.Auto), P(("a", "b"))

    def mapped(check_vma: bool, of_weight):
        def run(x, w, dy):
            y, dx, dw = forward_and_backward()(x, w, dy)
            return y, dx, of_weight(dw)

        shared = P() if check_vma else rows
        specs = {"in_specs": (rows, P(), rows), "out_specs": (rows, rows, shared)}
        return jax.jit(jax.shard_map(run, mesh=mesh, check_vma=check_vma, **specs))(*arrays)

    y, dx, dw = mapped(True, lambda dw: dw)
    other_y, other_dx, parts = mapped(False, lambda dw: dw[None])
    assert raw((y, dx)) == raw((other_y, other_dx))
    total = np.sum(np.asarray(parts, np.float64), axis=0)
    assert np.linalg.norm(dw - total) <= 8 * 2**-24 * np.linalg.norm(total)


def test_out_sharding_without_explicit_axes_raises(tensor):
    w = jnp.ones((96, 80), jnp.float32)
    with pytest.raises(ValueError, match="explicit axes"):
        forward_and_backward(P("a", None))(tensor, w, jnp.ones((64, 80), jnp.float32))

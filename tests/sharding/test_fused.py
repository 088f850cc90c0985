"""The fused kernels split over devices give what they give on one: what the definition gives.

The kernels are a stand-in, whose own bits are no claim of this file (`quick_to_compile`).
"""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import nvfp4_jax as nvfp4
from nvfp4_jax import Quantizer, hadamard
from nvfp4_jax.kernels import fused, scaled_product, xla
from nvfp4_jax.kernels.request import Request
from tests.gemm.precisions import PAPER

pytestmark = pytest.mark.usefixtures("quick_to_compile")

ROW = Quantizer()
NOISY = Quantizer(rounding="stochastic")
ROTATED = Quantizer(rht=16)
NOISY_ROTATED = Quantizer(rht=16, rounding="stochastic", bits=16)
TILE = Quantizer(granularity="16x16")
PAIRS = (
    (Request(ROW, -1), Request(ROTATED, -2)),
    (Request(NOISY, -1), Request(NOISY_ROTATED, -2)),
    (Request(TILE, -1),),
    (Request(Quantizer(rht=16, rounding="stochastic"), -1),),
    (Request(Quantizer("mxfp4"), -1), Request(ROTATED, -2)),
)
SHAPES = ((128, 256), (2, 64, 128), (37, 50), (3, 40, 32))
SPECS = (P("a", "b"), P(None, ("a", "b")), P(("a", "b")))


def requests(pair):
    return [
        r._replace(
            key=jax.random.key(i) if r.quantizer.needs_key else None,
            signs=hadamard.fixed_signs() if r.quantizer.rht else None,
        )
        for i, r in enumerate(pair)
    ]


def tensor(shape, dtype=jnp.bfloat16):
    return jnp.asarray(np.random.default_rng(len(shape)).standard_normal(shape), dtype)


def same(actual, expected):
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        a, b = (np.asarray(jax.device_get(v)).astype(np.float32) for v in (a, b))
        np.testing.assert_array_equal(a, b)


@cache
def defined(pair: tuple[Request, ...], shape: tuple[int, ...]):
    """What the definition makes of a tensor."""
    asked = requests(pair)
    return jax.jit(lambda x: xla.to_operands(x, asked))(tensor(shape))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: " & ".join(str(r[0]) for r in pair))
def test_one_device(on_a_gpu, pair, shape):
    x = tensor(shape)
    asked = requests(pair)
    same(jax.jit(lambda x: fused.to_operands(x, asked))(x), defined(pair, shape))


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("pair", PAIRS[:3], ids=lambda pair: " & ".join(str(r[0]) for r in pair))
def test_split_over_devices(on_a_gpu, pair, spec):
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(AxisType.Auto, AxisType.Auto))
    asked = requests(pair)
    placed = jax.device_put(tensor((128, 256)), NamedSharding(mesh, spec))
    run = jax.jit(lambda x: fused.to_operands(x, asked))
    same(run(placed), defined(pair, (128, 256)))
    assert "all-gather" not in run.lower(placed).compile().as_text()


@cache
def packed(asked_: tuple[Request], shape: tuple[int, ...]):
    """What the definition keeps of a tensor."""
    (asked,) = requests(asked_)
    return jax.jit(lambda x: xla.to_packed(x, asked))(tensor(shape))


@pytest.mark.parametrize("request_", [*PAIRS[0], *PAIRS[1], *PAIRS[2]], ids=lambda r: str(r[0]))
def test_packed_and_unpacked(on_a_gpu, request_):
    x = tensor((64, 128))
    (asked,) = requests([request_])
    kept = jax.jit(lambda x: fused.to_packed(x, asked))(x)
    same(kept, packed((request_,), x.shape))
    same(fused.from_packed(kept), defined((request_,), x.shape)[0])


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_packed_over_devices(on_a_gpu, spec):
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(AxisType.Auto, AxisType.Auto))
    one = (Request(ROTATED, -2),)
    (asked,) = requests(one)

    def there_and_back(x):
        kept = fused.to_packed(x, asked)
        return kept, fused.from_packed(kept)

    run = jax.jit(there_and_back)
    placed = jax.device_put(tensor((128, 256)), NamedSharding(mesh, spec))
    kept, operand = run(placed)
    same(kept, packed(one, (128, 256)))
    same(operand, defined(one, (128, 256))[0])
    assert "all-gather" not in run.lower(placed).compile().as_text()


def test_examples_under_vmap_are_tensors_of_their_own(on_a_gpu):
    x = tensor((3, 32, 48))
    asked = requests(PAIRS[0])
    mapped = jax.jit(jax.vmap(lambda x: fused.to_operands(x, asked)))(x)
    alone = jax.jit(lambda x: xla.to_operands(x, asked))
    for i in range(3):
        same(jax.tree.map(lambda leaf, i=i: leaf[i], mapped), alone(x[i]))


def linear(precision, implementation):
    """(x, w, dy) -> (y, dx, dw)."""

    def run(x, w, dy):
        dot_general = nvfp4.make_dot_general(precision, jax.random.key(2), implementation)
        y, vjp = jax.vjp(lambda x, w: dot_general(x, w, (((1,), (0,)), ((), ()))), x, w)
        return (y, *vjp(dy))

    return run


def arguments():
    return tensor((128, 96)), tensor((96, 64), jnp.float32), tensor((128, 64)) + tensor((128, 64))


@cache
def expected():
    """What a linear gives, emulated, with `products_on_a_cpu`; packed residuals change no bit."""
    return jax.jit(linear(PAPER, "xla"))(*arguments())


def close(actual, expected, tolerance=2.0**-8):
    for a, b in zip(actual, expected, strict=True):
        a, b = (np.asarray(jax.device_get(v)).astype(np.float64) for v in (a, b))
        assert np.linalg.norm(a - b) <= tolerance * np.linalg.norm(b)


@pytest.mark.parametrize("residuals", ["bf16", "packed"])
def test_a_linear_in_every_surrounding(on_a_gpu, products_on_a_cpu, residuals):
    run = linear(replace(PAPER, residuals=residuals), "triton")
    close(jax.jit(run)(*arguments()), expected())
    close(jax.jit(jax.checkpoint(run))(*arguments()), expected())

    def body(_, arrays):
        return None, run(*arrays)

    stacked = jax.tree.map(lambda a: jnp.stack([a, a]), arguments())
    _, scanned = jax.jit(lambda arrays: jax.lax.scan(body, None, arrays))(stacked)
    close([leaf[1] for leaf in scanned], expected())
    close([leaf[1] for leaf in jax.jit(jax.vmap(run))(*stacked)], expected())


@pytest.mark.parametrize("specs", [(P("a"), P(None, "b")), (P("a", "b"), P("b")), (P(), P("a"))])
def test_a_linear_split_over_devices(on_a_gpu, products_on_a_cpu, specs):
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(AxisType.Auto, AxisType.Auto))
    x_spec, w_spec = (NamedSharding(mesh, spec) for spec in specs)
    run = jax.jit(linear(PAPER, "triton"))
    dy_spec = NamedSharding(mesh, P("a"))
    close(run(*map(jax.device_put, arguments(), (x_spec, w_spec, dy_spec))), expected())


@pytest.mark.parametrize("check", [False, True])
def test_a_shard_is_a_tensor_within_shard_map(on_a_gpu, products_on_a_cpu, check):
    """Where JAX checks what varies, a shared weight's gradient is the sum over shards."""
    mesh = jax.make_mesh((4,), ("a",), axis_types=(AxisType.Auto,))
    x, w, dy = arguments()
    split = jax.shard_map(
        linear(PAPER, "triton"),
        mesh=mesh,
        in_specs=(P("a"), P(), P("a")),
        out_specs=(P("a"), P("a"), P() if check else P("a")),
        check_vma=check,
    )
    y, dx, dw = jax.jit(split)(x, w, dy)
    alone = jax.jit(linear(PAPER, "xla"))
    close((y[:32], dx[:32]), alone(x[:32], w, dy[:32])[:2])
    shards = [alone(x[i : i + 32], w, dy[i : i + 32])[2] for i in range(0, 128, 32)]
    close((dw,), (sum(shards) if check else jnp.concatenate(shards),))


def test_a_linear_on_explicit_axes(on_a_gpu, products_on_a_cpu):
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(AxisType.Explicit, AxisType.Explicit))
    alone = expected()
    with jax.set_mesh(mesh):
        specs = (P("a"), P(None, "b"), P("a", "b"))
        placed = map(jax.device_put, arguments(), [NamedSharding(mesh, spec) for spec in specs])
        close(jax.jit(linear(PAPER, "triton"))(*placed), alone)


def test_partial_sums_travel_in_the_dtype_of_the_result(products_on_a_cpu):
    """256.5 and -256 on two devices are 0.5 in FP32; 256.5 as a bf16 is 256, and the sum 0."""
    mesh = jax.make_mesh((8,), ("k",), axis_types=(AxisType.Auto,))
    a = jnp.ones((16, 128), jnp.bfloat16)
    b = jnp.zeros((128, 16), jnp.bfloat16).at[0].set(256).at[1].set(0.5).at[127].set(-256)
    a, b = (
        jax.device_put(x, NamedSharding(mesh, spec)) for x, spec in ((a, P(None, "k")), (b, P("k")))
    )
    one = (jnp.float32(1),)
    for dtype, expected in ((jnp.float32, 0.5), (jnp.bfloat16, 0.0)):
        product = jax.jit(partial(scaled_product.scaled_product, contract=(1, 0), dtype=dtype))
        assert (np.asarray(product(a, b, scales=one), np.float32) == expected).all(), dtype


def test_partial_sums_scatter_where_the_result_is_stored_in_parts(products_on_a_cpu):
    """A weight gradient over data x fsdp: scattered over fsdp as it is summed, then its part."""
    mesh = jax.make_mesh((2, 4), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    layout = NamedSharding(mesh, P("fsdp"))
    draw = np.random.default_rng(0)
    x, dy = (jnp.asarray(draw.integers(-8, 8, (64, n)), jnp.bfloat16) for n in (32, 16))
    tokens = NamedSharding(mesh, P(("data", "fsdp")))

    def wgrad(x, dy):
        one = (jnp.float32(1),)
        dw = scaled_product.scaled_product(x, dy, (0, 0), one, jnp.float32)
        return jax.lax.with_sharding_constraint(dw, layout)

    compiled = jax.jit(wgrad, in_shardings=(tokens, tokens)).lower(x, dy).compile()
    expected = np.asarray(x, np.float32).T @ np.asarray(dy, np.float32)  # small integers: exact
    found = compiled(jax.device_put(x, tokens), jax.device_put(dy, tokens))
    np.testing.assert_array_equal(np.asarray(found), expected)
    text = compiled.as_text()
    assert "f32[8,16]" in text.split("reduce-scatter(")[0].splitlines()[-1]
    assert "f32[32,16]" not in "".join(re.findall(r"= (\S+) all-reduce\(", text))

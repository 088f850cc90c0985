"""An MLP that hands amaxes on has the bits of its three operations one after the other.

On a CPU, with what `standin` has in place of kernels (`quick_to_compile`: both sides alike).
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import nvfp4_jax as nvfp4
from nvfp4_jax import Gemm, LinearPrecision, Quantizer, hadamard
from nvfp4_jax.chained import Bound, relu_squared_mlp
from nvfp4_jax.kernels import fused, launch
from nvfp4_jax.kernels.request import Request
from nvfp4_jax.models import mlp
from nvfp4_jax.operands import amax_bits
from nvfp4_jax.residuals import LINEAR_INPUT
from tests.gemm.precisions import LEAN, PAPER, PRECISIONS
from tests.sharding.test_fused import same

pytestmark = pytest.mark.usefixtures("quick_to_compile")

UP, DOWN = jax.random.key(3), jax.random.key(4)
BATCH, LENGTH, HIDDEN, FFN = 2, 40, 32, 48  # tokens of two rows meet in a rotation
ROWS = PRECISIONS["rows"]
# Nothing stochastic, whose random bits take two thirds of the time to compile.
QUIET = LinearPrecision(
    PAPER.fprop,
    Gemm(grad=Quantizer(), weight=PAPER.dgrad.weight),
    Gemm(input=Quantizer(rht=16), grad=Quantizer(rht=16)),
)
RANDOM_SIGNS = replace(
    PAPER,
    wgrad=Gemm(
        input=Quantizer(rht=16, sign="random"),
        grad=Quantizer(rht=16, rounding="stochastic", sign="random"),
    ),
)
LONGER = Quantizer(rht=32)
BF16_WGRAD = LinearPrecision(PAPER.fprop, PAPER.dgrad, Gemm())


def arrays(*batch: int):
    draw = np.random.default_rng(0)
    x = draw.standard_normal((*batch, BATCH, LENGTH, HIDDEN))
    dy = draw.standard_normal((*batch, BATCH, LENGTH, HIDDEN)) * 1e-3
    up, down = draw.standard_normal((HIDDEN, FFN)), draw.standard_normal((FFN, HIDDEN))
    return *(jnp.asarray(a, jnp.bfloat16) for a in (x, dy)), *map(jnp.float32, (up, down))


def chained(up, down, x, w_up, w_down):
    """With amaxes handed on, which must be possible; weights' amaxes are known."""
    bounds = (
        Bound(precision, key if precision.needs_key else None, amax_bits(w, jnp.bfloat16))
        for precision, key, w in ((up, UP, w_up), (down, DOWN, w_down))
    )
    y = relu_squared_mlp(x, w_up, w_down, *bounds)
    assert y is not None
    return y


def one_after_another(up, down, x, w_up, w_down):
    numbers = (((x.ndim - 1,), (0,)), ((), ()))
    u = nvfp4.make_dot_general(up, UP)(x, w_up, numbers)
    return nvfp4.make_dot_general(down, DOWN)(mlp.relu_squared(u), w_down, numbers)


def run(form, up, down, x, dy, w_up, w_down, around=lambda f: f):
    """y, dx and both weights' gradients."""
    y, pull = jax.vjp(around(partial(form, up, down)), x, w_up, w_down)
    return (y, *pull(dy))


@pytest.fixture
def gpu(on_a_gpu, products_on_a_cpu):
    pass


@cache
def reference(up, down):
    """One after the other, compiled."""
    return jax.jit(partial(run, one_after_another, up, down))


@pytest.mark.parametrize(
    ("up", "down"),
    [
        (PAPER, PAPER),
        (ROWS, replace(QUIET, residuals="packed")),
        (RANDOM_SIGNS, BF16_WGRAD),
    ],
    ids=["paper", "rows and packed", "random signs and no Wgrad"],
)
def test_the_bits_are_those_of_one_after_the_other(gpu, up, down):
    same(jax.jit(partial(run, chained, up, down))(*arrays()), reference(up, down)(*arrays()))


def test_amaxes_are_found_for_what_comes_from_outside_alone(gpu, monkeypatch):
    """x and dy; not for r and du. Rows of 33, since what was traced before is not traced again."""
    found = []
    amax = launch.amax_bits
    monkeypatch.setattr(launch, "amax_bits", lambda x, *a: found.append(x.shape) or amax(x, *a))
    x, dy, *weights = arrays()
    jax.eval_shape(partial(run, chained, PAPER, PAPER), x[:, :33], dy[:, :33], *weights)
    assert found == [(1, BATCH * 33, HIDDEN)] * 2


@pytest.mark.parametrize("keep", ["inputs", "nothing"])
def test_under_rematerialization(gpu, keep):
    inputs = jax.checkpoint_policies.save_only_these_names(LINEAR_INPUT)
    around = partial(jax.checkpoint, policy=inputs if keep == "inputs" else None)
    found = jax.jit(partial(run, chained, QUIET, QUIET, around=around))(*arrays())
    same(found, reference(QUIET, QUIET)(*arrays()))


@pytest.mark.parametrize("how", ["scan", "vmap"])
def test_mapped_every_part_is_a_tensor_of_its_own(gpu, how):
    x, dy, *weights = arrays(2)
    x = x * jnp.asarray([1, 30], jnp.bfloat16)[:, None, None, None]

    @jax.jit
    def mapped(x, dy, *weights):
        one = partial(run, chained, QUIET, QUIET)
        if how == "vmap":
            return jax.vmap(one, (0, 0, None, None))(x, dy, *weights)
        return jax.lax.scan(lambda _, parts: (None, one(*parts, *weights)), None, (x, dy))[1]

    found = mapped(x, dy, *weights)
    for i in range(2):
        same([part[i] for part in found], reference(QUIET, QUIET)(x[i], dy[i], *weights))


def test_within_shard_map_a_shard_is_a_tensor(gpu):
    mesh = jax.make_mesh((2,), ("a",), axis_types=(AxisType.Auto,))
    x, dy, *weights = arrays(2)
    split = jax.shard_map(
        lambda x, dy, *w: [a[None] for a in run(chained, QUIET, QUIET, x[0], dy[0], *w)],
        mesh=mesh,
        in_specs=(P("a"), P("a"), P(), P()),
        out_specs=P("a"),
        check_vma=False,
    )
    found = jax.jit(split)(x, dy, *weights)
    for i in range(2):
        same([part[i] for part in found], reference(QUIET, QUIET)(x[i], dy[i], *weights))


@pytest.mark.parametrize("spec", [P("a", "b"), P(None, ("a", "b")), P(("a", "b"))], ids=str)
@pytest.mark.parametrize("gradient", [False, True], ids=["value", "gradient"])
def test_split_over_devices_it_has_the_amaxes_of_the_whole(on_a_gpu, spec, gradient):
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(AxisType.Auto, AxisType.Auto))
    asked = [Request(Quantizer(), -1), Request(Quantizer(rht=16), -2, None, hadamard.fixed_signs())]
    draw = np.random.default_rng(0)
    tensors = [jnp.asarray(draw.standard_normal((128, 256)), jnp.bfloat16) for _ in range(2)]
    tensors = tensors[: 1 + gradient]
    kernel = jax.jit(lambda u, *dr: fused.relu_squared(u, asked, *dr))
    placed = [jax.device_put(x, NamedSharding(mesh, spec)) for x in tensors]
    found = kernel(*placed)
    same(found, kernel(*tensors))
    assert found[0].sharding.spec == placed[0].sharding.spec
    assert "all-gather" not in kernel.lower(*placed).compile().as_text()


def test_on_a_mesh(gpu):
    """Rows over a, features inside over b; the products' sums are in the same order."""
    mesh = jax.make_mesh((2, 2), ("a", "b"), axis_types=(AxisType.Auto, AxisType.Auto))
    specs = (P("a"), P("a"), P(None, "b"), P("b"))
    placed = [
        jax.device_put(x, NamedSharding(mesh, spec))
        for x, spec in zip(arrays(), specs, strict=True)
    ]
    same(
        jax.jit(partial(run, chained, QUIET, QUIET))(*placed),
        reference(QUIET, QUIET)(*placed),
    )


@pytest.mark.parametrize(
    ("up", "down", "dtype"),
    [
        (LinearPrecision(), PAPER, jnp.bfloat16),
        (PAPER, LinearPrecision(), jnp.bfloat16),
        (LEAN, PAPER, jnp.bfloat16),
        (PAPER, LEAN, jnp.bfloat16),
        (PAPER, replace(PAPER, wgrad=Gemm(input=LONGER, grad=LONGER)), jnp.bfloat16),
        (PAPER, PAPER, jnp.float32),
    ],
)
def test_where_it_cannot_be_done_it_says_so(gpu, up, down, dtype):
    x, _, w_up, w_down = arrays()
    bounds = Bound(up, UP), Bound(down, DOWN)
    assert relu_squared_mlp(x.astype(dtype), w_up, w_down, *bounds) is None


def test_without_a_gpu_it_is_not_done():
    x, _, w_up, w_down = arrays()
    assert relu_squared_mlp(x, w_up, w_down, Bound(PAPER, UP), Bound(PAPER, DOWN)) is None


def test_nor_on_explicit_axes(gpu):
    mesh = jax.make_mesh((2,), ("a",), axis_types=(AxisType.Explicit,))
    x, _, w_up, w_down = arrays()
    with jax.set_mesh(mesh):
        placed = jax.device_put(x, NamedSharding(mesh, P("a")))
        bounds = Bound(PAPER, UP), Bound(PAPER, DOWN)
        assert relu_squared_mlp(placed, w_up, w_down, *bounds) is None

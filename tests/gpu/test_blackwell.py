"""Native NVFP4 on a Blackwell: never run by us, who have none. Run it before you trust it.

What can be wrong on hardware alone: a cast that rounds otherwise or takes another random byte, a
product that reads codes or scales in another order, and sums that are rounded in another way.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nvfp4_jax as nvfp4
from nvfp4_jax import Quantizer, hadamard
from nvfp4_jax.kernels import blackwell, blackwell_layout, xla
from nvfp4_jax.kernels.request import Request
from tests.gemm.precisions import PAPER

REQUESTS = {
    "nearest": Request(Quantizer(), -1),
    "transposed": Request(Quantizer(), -2),
    "tiles": Request(Quantizer(granularity="16x16"), -2),
    "rotated": Request(Quantizer(rht=16), -2),
    "stochastic": Request(Quantizer(rounding="stochastic"), -1),
    "stochastic, transposed": Request(Quantizer(rounding="stochastic"), -2),
    "stochastic, rotated": Request(Quantizer(rht=16, rounding="stochastic"), -2),
    "stochastic, 16 bits": Request(Quantizer(rounding="stochastic", bits=16), -1),
}
MATRICES = ((256, 512), (37, 50), (1000, 1001))
SIZES = ((128, 128, 256), (50, 24, 40), (512, 768, 1024), (1000, 1300, 2100), (4096, 5120, 4096))


def tensor(shape, seed=0):
    return jax.random.t(jax.random.key(seed), 3.0, shape).astype(jnp.bfloat16)


def asked(request: Request) -> Request:
    key = jax.random.key(1) if request.quantizer.rounding == "stochastic" else None
    signs = hadamard.fixed_signs() if request.quantizer.rht else None
    return request._replace(key=key, signs=signs)


@pytest.mark.parametrize("shape", MATRICES, ids=str)
@pytest.mark.parametrize("name", REQUESTS)
def test_codes_and_scales_are_the_definitions(name, shape):
    request = asked(REQUESTS[name])
    x = tensor(shape)
    (operand,) = jax.jit(lambda x: blackwell.to_native(x, [request]))(x)
    q = xla.quantize(x, request.quantizer, request.axis, request.key, request.signs)
    parts = (jnp.moveaxis(part, request.axis, -1) for part in (q.data, q.block_scale))
    codes, scale = blackwell_layout.from_linear(*parts)
    assert differing(operand.array.codes, codes) == 0
    assert differing(operand.array.block_scale, scale) == 0
    assert float(operand.scale) == float(q.tensor_scale)


def differing(a, b) -> int:
    return int(np.count_nonzero(np.asarray(a).view(np.uint8) != np.asarray(b).view(np.uint8)))


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_product_whose_sums_are_exact(dtype, sizes):
    """Small whole numbers with scales that are powers of two: every order of sums is exact."""
    m, n, k = sizes
    a, b = (whole_numbers((rows, k), seed) for seed, rows in enumerate((m, n)))
    exact = np.asarray(a, np.float64) @ np.asarray(b, np.float64).T
    one = jnp.float32(1)

    @jax.jit
    def product(a, b):
        operands = [blackwell.to_native(x, [Request(Quantizer(), -1)])[0] for x in (a, b)]
        scales = tuple(operand.scale for operand in operands)
        return blackwell.native_product(*(o.array for o in operands), (one, *scales), dtype)

    got = np.asarray(product(a, b)).astype(np.float64)
    expected = np.asarray(jnp.asarray(exact, dtype)).astype(np.float64)
    np.testing.assert_array_equal(got, expected)


def whole_numbers(shape, seed):
    """Codes times 2^0 .. 2^2 by block of 16, the largest 6 * 448 in all: scales are exact."""
    rng = np.random.default_rng(seed)
    codes = rng.choice([-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0], shape)
    codes[:, ::16] = 6.0
    blocks = 2.0 ** rng.integers(0, 3, (shape[0], -(-shape[1] // 16)))
    x = codes * np.repeat(blocks, 16, axis=1)[:, : shape[1]]
    x[0, :16] = 0
    x[0, 0] = 6 * 448
    return jnp.asarray(x, jnp.bfloat16)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_a_linear_is_the_emulated_one(sizes):
    m, n, k = sizes
    x, w, dy = tensor((m, k)), tensor((k, n), 1).astype(jnp.float32), tensor((m, n), 2)

    def run(implementation):
        @jax.jit
        def products(x, w, dy):
            dot_general = nvfp4.make_dot_general(PAPER, jax.random.key(5), implementation)
            y, vjp = jax.vjp(lambda x, w: dot_general(x, w, (((1,), (0,)), ((), ()))), x, w)
            return (y, *vjp(dy))

        return products(x, w, dy)

    for name, a, b in zip(("y", "dx", "dw"), run("blackwell"), run("xla"), strict=True):
        a, b = (np.asarray(v).astype(np.float64) for v in (a, b))
        tolerance = 2.0**-8 if name != "dw" else 1e-5  # FP32 sums in another order, cut off
        assert np.linalg.norm(a - b) <= tolerance * np.linalg.norm(b), name

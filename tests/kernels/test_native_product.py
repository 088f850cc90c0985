"""The twin of the block-scaled product, interpreted: what quantizers write is what it reads."""

from __future__ import annotations

import numpy as np
import pytest

from tests.oracle import native

from .cases import BF16, COLUMN_WISE, ROTATED, ROW_WISE, TILES, stochastic, tensor
from .native_product import product
from .test_blackwell_quantize import TILES_DOWN, operands

PAIRS = {  # operands of (tokens, features), (features, outputs) and (tokens, outputs)
    "fprop": (ROW_WISE, TILES_DOWN),
    "dgrad": (stochastic(ROW_WISE), TILES),
    "wgrad": (ROTATED, stochastic(ROTATED)),
    "wgrad without rotation": (COLUMN_WISE, COLUMN_WISE),
}
SHAPES = {"fprop": ((40, 70), (70, 24)), "dgrad": ((40, 24), (70, 24))}


@pytest.mark.parametrize("gemm", PAIRS)
def test_it_is_the_product_of_the_values(interpreted, gemm):
    shapes = SHAPES.get(gemm, ((40, 70), (40, 24)))
    a, b = (
        operands(interpreted, tensor("normal", (1, *shape), BF16, seed), (copy,))[0]
        for seed, (shape, copy) in enumerate(zip(shapes, PAIRS[gemm], strict=True))
    )
    got = np.asarray(product(a, b))
    left, right = (native.values(*map(np.asarray, x)).astype(np.float64) for x in (a, b))
    # Every product is exact, and so the sums alone round.
    bound = left.shape[1] * 2.0**-24 * (np.abs(left) @ np.abs(right).T)
    assert np.all(np.abs(got - left @ right.T) <= bound)

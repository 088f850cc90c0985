"""Hypothesis looks where nobody thought to: any shape, axis, dtype, quantizer and magnitude."""

from __future__ import annotations

import jax
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from nvfp4_jax import Quantizer
from nvfp4_jax.formats import FORMATS

from .compare import assert_codes
from .inputs import cast, tensors

KINDS = ("normal", "heavy tails", "log-normal", "outliers", "ties", "rows apart", "zero blocks")


@st.composite
def quantizers(draw) -> Quantizer:
    format = draw(st.sampled_from(list(FORMATS)))
    rounding = draw(st.sampled_from(["nearest", "stochastic"]))
    return Quantizer(
        format,
        draw(st.sampled_from(FORMATS[format].granularities)),
        rounding=rounding,
        bits=draw(st.sampled_from([8, 16, 32])) if rounding == "stochastic" else 8,
        rht=draw(st.sampled_from([0, 0, 16, 32])),
        scale=draw(st.sampled_from(FORMATS[format].scales)),
    )


@st.composite
def cases(draw):
    shape = tuple(draw(st.lists(st.integers(1, 35), min_size=1, max_size=3)))
    axis = draw(st.integers(-len(shape), len(shape) - 1))
    dtype = draw(st.sampled_from(["float32", "bfloat16", "float16"]))
    return shape, axis, dtype, draw(st.sampled_from(KINDS)), draw(st.integers(0, 2**16))


@given(quantizers(), cases())
def test_the_bits_of_anything_are_the_oracles(quantizer, case):
    shape, axis, dtype, kind, seed = case
    x = tensors(quantizer.format, shape, seed=seed)[kind]
    assert np.isfinite(x).all()
    assert_codes(cast(x, dtype), quantizer, axis, jax.random.key(seed))

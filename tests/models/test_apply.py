"""Running the blocks: unrolled, rematerialized and scanned are one; bind is told where it is."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from nvfp4_jax import models
from nvfp4_jax.models import Repeat
from tests.models.small import build, gap, tokens

pytestmark = pytest.mark.usefixtures("quick_to_compile")

PATTERN = "-M*M*M*-"
REPEATS = (Repeat(1, 2, 3),)


def noisy(block, indices, step):
    """Multiply every product by 1 + a number that is drawn from the block's own key."""
    index = indices[0] if step is None else jnp.asarray(indices)[step]
    key = jax.random.fold_in(jax.random.key(0), index)
    factor = 1 + 0.1 * jax.random.normal(key)
    for _, module in nnx.iter_modules(block):
        if isinstance(module, nnx.Linear):
            module.dot_general = lambda x, w, numbers, **_: factor * lax.dot_general(x, w, numbers)


LOOP = (Repeat(1, 2, 2),)


def loss_and_gradients(**how):
    graph, state = nnx.split(build(pattern="-M*M*"))
    row, ids = tokens(2, 11), jnp.cumsum(tokens(2, 11) == 0, axis=1)

    def loss(state):
        model = nnx.merge(graph, state)
        hidden = models.apply_blocks(model, model.embed(row), ids, bind=noisy, **how)
        return jnp.square(model.head(model.readout(hidden))).mean()

    # Unoptimized machine code compiles in half the time; the operations are the same.
    options = {"xla_backend_optimization_level": 0}
    return jax.jit(jax.value_and_grad(loss), compiler_options=options)(state)


def test_scanned_and_rematerialized_equal_unrolled():
    """The same operations in the same order, which a compiler may fuse otherwise.

    That is an FP32 rounding or two a layer (2^-23 each); four layers of random weights magnify
    them by less than 100. The random numbers that `noisy` draws must be the same for this.
    """
    value, gradients = loss_and_gradients()
    for options in (
        {"repeats": LOOP},
        {"repeats": LOOP, "remat": "block"},
        {"repeats": LOOP, "remat": "linear_inputs"},
    ):
        other, others = loss_and_gradients(**options)
        np.testing.assert_allclose(other, value, rtol=1e-5)
        for (path, expected), (_, actual) in zip(
            nnx.to_flat_state(gradients), nnx.to_flat_state(others), strict=True
        ):
            assert gap(actual[...], expected[...]) < 1e-4, (path, options)


def test_bind_is_told_the_block():
    seen = []

    def bind(block, indices, step):
        seen.append((block.letters, indices, step is None))

    model = build(pattern=PATTERN)
    x = jnp.zeros((1, 4, 16))
    jax.eval_shape(lambda x: models.apply_blocks(model, x, bind=bind, repeats=REPEATS), x)
    once = list(dict.fromkeys(seen))
    assert once == [
        ("-", (0,), True),
        ("M", (1, 3, 5), False),
        ("*", (2, 4, 6), False),
        ("-", (7,), True),
    ]


def test_bind_leaves_the_model_alone():
    model = build(pattern="-")
    x = model.embed(tokens(1, 5))
    before = models.apply_blocks(model, x)
    noised = models.apply_blocks(model, x, bind=noisy)
    assert np.abs(before - noised).max() > 1e-3
    np.testing.assert_array_equal(models.apply_blocks(model, x), before)


def test_a_loop_is_compiled_once():
    """The equations of a scan do not grow with its count."""

    def equations(count):
        model = build(pattern="M-" * count)
        repeats = (Repeat(0, 2, count),)
        jaxpr = jax.make_jaxpr(lambda x: models.apply_blocks(model, x, repeats=repeats))
        return str(jaxpr(jnp.zeros((1, 4, 16)))).count("dot_general")

    assert equations(4) == equations(2) > 0


@pytest.mark.parametrize(
    ("repeats", "message"),
    [
        ((Repeat(1, 2, 4),), "leaves the 8 blocks"),
        ((Repeat(1, 2, 2), Repeat(4, 2, 2)), "overlaps"),
        ((Repeat(0, 2, 2),), "different mixers"),
        ((Repeat(1, 0, 2),), "overlaps another or leaves"),
    ],
)
def test_impossible_repeats(repeats, message):
    with pytest.raises(ValueError, match=message):
        models.apply_blocks(build(pattern=PATTERN), jnp.zeros((1, 4, 16)), repeats=repeats)


def test_unknown_remat():
    with pytest.raises(ValueError, match="remat = 'full'"):
        models.apply_blocks(build(), jnp.zeros((1, 4, 16)), remat="full")


def labels(first: int, last: int) -> list[tuple[str, str]]:
    """The 12B's blocks, with the first and last in bf16."""
    pattern = models.preset("nano-12b-v2").pattern
    end = len(pattern) - last
    return [(m, "nvfp4" if first <= i < end else "bf16") for i, m in enumerate(pattern)]


def test_repeats_of_the_12b():
    """First 2 and last 8 blocks in bf16: repeats 2 to 6 of nine blocks are a loop, and the tail."""
    assert models.find_repeats(labels(2, 8)) == (Repeat(9, 9, 5), Repeat(54, 2, 4))
    assert models.find_repeats(labels(0, 0)) == (Repeat(0, 9, 6), Repeat(54, 2, 4))


@pytest.mark.parametrize(
    ("letters", "expected"),
    [
        ("", ()),
        ("abc", ()),
        ("abab", ()),  # a loop would cost as much as it saves
        ("aaaa", (Repeat(0, 1, 4),)),
        ("ababab", (Repeat(0, 2, 3),)),
        ("xabababy", (Repeat(1, 2, 3),)),
        ("aabaab", (Repeat(0, 3, 2),)),
    ],
)
def test_find_repeats(letters, expected):
    assert models.find_repeats(letters) == expected

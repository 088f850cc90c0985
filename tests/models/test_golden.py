"""The whole model against golden values: logits, loss and every gradient.

FP32 sums of some hundred terms, over ten blocks, in another order than PyTorch's: 5e-5 is about
400 roundings of 2^-23, and what is found is ten times smaller.
"""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

from nvfp4_jax import models
from nvfp4_jax.models.hf_names import theirs
from tests.models.small import gap

FOLDER = Path(__file__).parents[1] / "data" / "nemotron"
TOLERANCE = 5e-5


@pytest.fixture(scope="module")
def golden():
    return load_file(FOLDER / "golden_hf.safetensors")


def run(golden, dt_limit):
    """Loss, logits, and gradients by their names and layouts in the file."""
    graph, state = nnx.split(models.from_pretrained(FOLDER, dt_limit=dt_limit))
    ids = jnp.asarray(golden["input_ids"])

    @jax.jit
    def loss(state):
        logits = nnx.merge(graph, state)(ids)
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits[:, :-1]), ids[:, 1:, None], -1)
        return -chosen.mean(), logits

    (value, logits), gradients = jax.value_and_grad(loss, has_aux=True)(state)
    named = {}
    for path, variable in nnx.to_flat_state(gradients):
        entry = theirs(path, "model")
        named[entry.name] = entry.encode(np.asarray(variable[...]))
    return value, logits, named


def test_logits_loss_and_every_gradient(golden):
    loss, logits, gradients = run(golden, dt_limit=(1e-3, np.inf))
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, golden["logits"], rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(loss, golden["loss"][0], rtol=TOLERANCE)
    expected = {name[5:] for name in golden if name.startswith("grad.")}
    assert set(gradients) == expected
    gaps = {name: gap(gradients[name], golden[f"grad.{name}"]) for name in expected}
    assert max(gaps.values()) < TOLERANCE, gaps


def test_gradients_tell_a_clamped_dt_from_a_free_one(golden):
    """Logits differ by 2e-5 only, but where dt is clamped its gradient is cut off."""
    _, _, gradients = run(golden, dt_limit=(0, np.inf))
    name = "model.layers.7.mixer.dt_bias"
    assert gap(gradients[name], golden[f"grad.{name}"]) > 100 * TOLERANCE

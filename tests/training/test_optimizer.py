"""AdamW against its equations in float64, and the shape of the learning rate."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nvfp4_jax.training.optimizer import adamw, learning_rate_schedule


def reference(weight: np.ndarray, grads: list[np.ndarray], rate: float, decay: float) -> np.ndarray:
    """The equations of the module's docstring."""
    m, v = np.zeros_like(weight), np.zeros_like(weight)
    for t, grad in enumerate(grads, start=1):
        m, v = 0.9 * m + 0.1 * grad, 0.95 * v + 0.05 * grad**2
        direction = (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.95**t)) + 1e-8)
        weight = weight - rate * (direction + decay * weight)
    return weight


def test_adamw_is_its_equations_and_spares_vectors_from_decay():
    draw = np.random.default_rng(0)
    start = {"kernel": draw.normal(size=(4, 3)), "scale": draw.normal(size=(5,))}
    grads = [{k: 0.1 * draw.normal(size=w.shape) for k, w in start.items()} for _ in range(5)]
    parameters = {k: jnp.asarray(w, jnp.float32) for k, w in start.items()}
    optimizer = adamw()
    state = optimizer.init(parameters)
    for grad in grads:
        grad = {k: jnp.asarray(g, jnp.float32) for k, g in grad.items()}
        updates, state = optimizer.update(grad, state, parameters)
        parameters = {k: w - 0.01 * updates[k] for k, w in parameters.items()}
    norms = [np.sqrt(sum((g**2).sum() for g in grad.values())) for grad in grads]
    assert max(norms) < 1  # so that nothing is clipped here
    for name, decay in (("kernel", 0.1), ("scale", 0.0)):
        expected = reference(start[name], [g[name] for g in grads], 0.01, decay)
        np.testing.assert_allclose(parameters[name], expected, rtol=1e-5)  # 5 steps of FP32


def test_gradients_are_clipped_to_norm_1_together():
    """Adam forgets the scale of a gradient, so compare its second moment."""
    grad = {"a": jnp.full((2,), 30.0), "b": jnp.full((2, 1), 40.0)}  # norm sqrt(2) * 50
    optimizer = adamw()
    _, state = optimizer.update(grad, optimizer.init(grad), grad)
    second = optax.tree.get(state, "nu")
    np.testing.assert_allclose(second["a"], 0.05 * 0.36 / 2, rtol=1e-5)
    np.testing.assert_allclose(second["b"], 0.05 * 0.64 / 2, rtol=1e-5)


def test_the_learning_rate_rises_stays_and_falls():
    rates = [float(learning_rate_schedule(1.0, 100, 10, 0.2)(t)) for t in range(100)]
    np.testing.assert_allclose(rates[:10], np.arange(1, 11) / 10, rtol=1e-6)
    np.testing.assert_allclose(rates[9:80], 1, rtol=1e-6)
    np.testing.assert_allclose(rates[79:], np.linspace(1, 0.01, 21), rtol=1e-5)


@pytest.mark.parametrize(
    ("warmup", "decay", "first", "last"),
    [(0, 0.0, 1, 1), (1, 0.0, 1, 1), (0, 1.0, 0.901, 0.01), (4, 0.0, 0.25, 1), (0, 0.1, 1, 0.01)],
)
def test_the_learning_rate_without_a_part(warmup, decay, first, last):
    schedule = learning_rate_schedule(1.0, 10, warmup, decay)
    rates = [float(schedule(t)) for t in range(10)]
    assert rates[0] == pytest.approx(first)
    assert rates[-1] == pytest.approx(last)
    assert max(rates) <= 1 + 1e-6

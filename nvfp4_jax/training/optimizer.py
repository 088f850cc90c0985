"""AdamW with clipping, and a learning rate that warms up, stays, and decays.

For a gradient g, clipped to a global norm of 1:

    m = 0.9 m + 0.1 g        v = 0.95 v + 0.05 g²        both corrected for their zero start
    w = w - learning_rate * (m / (sqrt(v) + 1e-8) + 0.1 w)

Everything is FP32: low precision lives in the products of the layers and nowhere else. Scales and
biases (parameters of one axis) are not decayed.

    learning rate   ____________________
                   /                    \\
                  /                      \\____ one hundredth
                  warm-up    stable      decay

The learning rate follows the step, not the number of updates, so that a skipped step does not
shift the schedule against the data or against the recipe's switches.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import chex
import jax
import optax

FINAL_FRACTION = 0.01  # of the peak, as in arXiv 2509.25149: 4.5e-4 to 4.5e-6


def learning_rate_schedule(
    peak: float, steps: int, warmup: int, decay_fraction: float
) -> optax.Schedule:
    """Warm-up-stable-decay over `steps`: linear up, constant, linear down to a hundredth.

    Args:
      peak: the stable learning rate.
      steps: length of the run; the last step has the lowest rate.
      warmup: steps of the rise; the first step already has peak / warmup.
      decay_fraction: share of the run that decays, at its end; 0 for none.
    """
    decay = round(decay_fraction * steps)
    rise = optax.linear_schedule(peak / max(warmup, 1), peak, max(warmup - 1, 1))
    fall = optax.linear_schedule(peak, peak * FINAL_FRACTION, decay)
    start = rise if warmup else optax.constant_schedule(peak)
    return _relaxed(optax.join_schedules([start, fall], [steps - 1 - decay]) if decay else start)


def adamw(clip: float = 1.0, decay: float = 0.1) -> optax.GradientTransformationExtraArgs:
    """The direction of the update, still to be multiplied by minus the learning rate.

    Its `update` may be given the gradients' global norm as `norm`, if that has been found already.
    """
    chain = optax.chain(
        _clipped(clip),
        optax.scale_by_adam(b1=0.9, b2=0.95, eps=1e-8),
        optax.add_decayed_weights(decay, mask=matrices),
    )
    return optax.GradientTransformationExtraArgs(chain.init, _relaxed(chain.update))


def _clipped(longest: float) -> optax.GradientTransformationExtraArgs:
    """`optax.clip_by_global_norm`, of a norm that may be known."""

    def update(updates: Any, state: Any, params: Any = None, **known: Any) -> Any:
        norm = known["norm"] if "norm" in known else optax.tree.norm(updates)

        def clip(g: jax.Array) -> jax.Array:
            return jax.lax.select(norm < longest, g, (g / norm.astype(g.dtype)) * longest)

        return jax.tree.map(clip, updates), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


def matrices(parameters: chex.ArrayTree) -> chex.ArrayTree:
    """True for every parameter with two axes or more: those that weight decay pulls to zero."""
    return jax.tree.map(lambda parameter: parameter.ndim > 1, parameters)


def _relaxed(function: Callable) -> Callable:
    """Optax multiplies integer counters with floats, which strict promotion would refuse."""

    @functools.wraps(function)
    def call(*args: Any, **options: Any) -> Any:
        with jax.numpy_dtype_promotion("standard"):
            return function(*args, **options)

    return call

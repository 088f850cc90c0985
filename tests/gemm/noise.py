"""The rounding noise that backward really made, read off the gradients it returned.

Through y = x w with identity matrices for x and w, the backward products return their quantized
operand unchanged: dx = Q(dy) I, dw = I Q(dy). The output's gradient dy is a matrix whose blocks
all have the scale 1 (each row and each column of sixteen holds a 6, and the tensor a 2688), so
what is returned minus the code below is 0 or one step: rounded down, or rounded up.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

import nvfp4_jax as nvfp4
from nvfp4_jax import Gemm, LinearPrecision, Quantizer

SIZE = 96
LAYERS = 8
AXES = (((1,), (0,)), ((), ()))


def precision(quantizer: Quantizer) -> LinearPrecision:
    """Only the gradient is quantized; bf16 holds an identity matrix exactly."""
    return LinearPrecision(dgrad=Gemm(grad=quantizer), wgrad=Gemm(grad=quantizer))


def pinned(fractions: np.ndarray) -> np.ndarray:
    """A gradient of 2 + f, where codes are 1 apart, with every block's scale made 1.

    The first row and column of blocks belong to the outlier; `revealed` cuts them off.
    """
    dy = 2 + np.resize(fractions, (SIZE, SIZE)).astype(np.float32)
    row, column = np.indices(dy.shape)
    dy[row % 16 == column % 16] = 6
    dy[0, 0] = 2688
    return dy


def informative() -> np.ndarray:
    """Which of the revealed elements are 2 + f and not the 6 of their block."""
    row, column = np.indices((SIZE - 16, SIZE - 16))
    return row % 16 != column % 16


def gradients(dy: np.ndarray, quantizer: Quantizer, one_key: bool = False):
    """A jitted function of a key: (dx, dw) of LAYERS layers, under remat inside a scan.

    `one_key` makes the mistake of giving every layer the same key.
    """
    eyes = jnp.broadcast_to(jnp.eye(SIZE), (LAYERS, SIZE, SIZE))

    def loss(xs, ws, key):
        @jax.checkpoint
        def layer(total, inputs):
            x, w, i = inputs
            layer_key = key if one_key else jax.random.fold_in(key, i)
            y = nvfp4.make_dot_general(precision(quantizer), layer_key)(x, w, AXES)
            return total + jnp.vdot(y, dy), None

        return jax.lax.scan(layer, jnp.float32(0), (xs, ws, jnp.arange(LAYERS)))[0]

    backward = jax.jit(jax.grad(loss, (0, 1)))
    return lambda key: backward(eyes, eyes, key)


def revealed(dy: np.ndarray, quantizer: Quantizer, keys, one_key: bool = False) -> np.ndarray:
    """1 where an element of dy was rounded up: (copies, keys, layers, rows, columns)."""
    run = gradients(dy, quantizer, one_key)
    results = np.stack([np.stack([np.asarray(g) for g in run(key)]) for key in keys], axis=1)
    up = results[..., 16:, 16:] - np.floor(dy)[16:, 16:]
    assert np.all((up == 0) | (up == 1)), "an element is one of its two neighbours"
    return up

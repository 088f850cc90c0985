"""`contract`: every matrix product of the model that no recipe governs.

Low-precision training rests on three promises about a product of two tensors. Operands are in the
compute dtype (bfloat16, say); the sum over products is kept in FP32; and the gradient of an FP32
master weight comes back in FP32, not rounded through the compute dtype on its way. Plain
`jnp.einsum` keeps the first two going forward, but not going backward: asked for an FP32 result it
multiplies an FP32 cotangent with a bfloat16 operand, which turns the two gradient products into
FP32 products (several times slower on a GPU); asked for a bfloat16 result it rounds the gradient
of the weight. So the rule for the backward pass is written here, once:

    y = a b        da = dy b^T        db = a^T dy

each with both operands in the compute dtype, FP32 accumulation, and the result in the dtype of
what it is the gradient of. FP32 and float64 operands are multiplied at the highest precision: no
TF32 behind one's back.

As with every custom_vjp, forward-mode differentiation raises.
"""

from __future__ import annotations

import functools
from typing import cast

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import DTypeLike


def accumulator(dtype: DTypeLike) -> jnp.dtype:
    """The dtype to accumulate in: FP32, or float64 for float64."""
    return jnp.dtype(jnp.float64 if jnp.dtype(dtype) == jnp.float64 else jnp.float32)


def contract(equation: str, a: Array, b: Array, compute: DTypeLike, result: DTypeLike) -> Array:
    """einsum(equation, a, b) with operands cast to `compute`, returned as `result`.

    Args:
      equation: `"ab,bc->ac"`; every letter of an operand is in the other or in the result, so
        that each gradient is again one product.
      a, b: the operands, of any float dtype; their gradients come back in it.
      compute: dtype of the operands of all three products.
      result: dtype of the result; the sum is rounded to it once.
    """
    return cast(Array, _contract(equation, a, b, compute, result))


def _product(equation: str, a: Array, b: Array, compute: DTypeLike, result: DTypeLike) -> Array:
    a, b = a.astype(compute), b.astype(compute)
    if a.dtype == accumulator(compute) or not _batched(equation):
        return _einsum(equation, a, b, result)
    return lax.platform_dependent(
        a,
        b,
        cpu=lambda a, b: _einsum(equation, a.astype(jnp.float32), b.astype(jnp.float32), result),
        default=lambda a, b: _einsum(equation, a, b, result),
    )


def _einsum(equation: str, a: Array, b: Array, result: DTypeLike) -> Array:
    precision = lax.Precision.HIGHEST if a.dtype.itemsize >= 4 else None
    wider = max(a.dtype, jnp.dtype(result), key=lambda dtype: dtype.itemsize)
    y = jnp.einsum(equation, a, b, precision=precision, preferred_element_type=wider)
    return y.astype(result)


def _batched(equation: str) -> bool:
    """Whether a letter is in both operands and in the result.

    XLA's CPU backend (jax 0.11.2) stops at some batched products of 16-bit operands with an FP32
    result ("Unsupported element type for DotThunk"). There they are multiplied as FP32, which is
    the same to the bit: a product of two such numbers is exact in FP32.
    """
    operands, result = equation.split("->")
    first, second = operands.split(",")
    return bool(set(first) & set(second) & set(result))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 3, 4))
def _contract(equation: str, a: Array, b: Array, compute: DTypeLike, result: DTypeLike) -> Array:
    return _product(equation, a, b, compute, result)


def _forward(equation: str, a: Array, b: Array, compute: DTypeLike, result: DTypeLike):
    return _product(equation, a, b, compute, result), (a, b)


def _backward(equation: str, compute: DTypeLike, _: DTypeLike, operands, dy: Array):
    a, b = operands
    operand_letters, y = equation.split("->")
    a_letters, b_letters = operand_letters.split(",")
    da = _product(f"{y},{b_letters}->{a_letters}", dy, b, compute, a.dtype)
    db = _product(f"{a_letters},{y}->{b_letters}", a, dy, compute, b.dtype)
    return da, db


_contract.defvjp(_forward, _backward)

"""`einsum` of an input and a weight through the three quantized GEMMs, for Flax's einsum hooks.

`jnp.einsum` may swap its operands on the way to a dot product ("bd,df->fb" does), and then the
weight would be quantized as the input. Here the first operand of the equation is the input and
the second the weight, whatever the output's order.
"""

from __future__ import annotations

import string
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from nvfp4_jax.dot_general import make_dot_general
from nvfp4_jax.precision import LinearPrecision


def make_einsum(
    linear_precision: LinearPrecision,
    key: Array | None = None,
    implementation: str | None = None,
    name: str | None = None,
) -> Callable[..., Array]:
    """An `einsum(equation, input, weight)` whose three GEMMs run in `linear_precision`.

    Arguments are `make_dot_general`'s, and so are dtypes and errors.

    Raises:
      ValueError: (the returned function) an equation of other than two operands, a label twice in
        one operand, or a label that only one operand has and the output lacks.
    """
    dot_general = make_dot_general(linear_precision, key, implementation, name=name)

    def einsum(
        equation: str,
        *operands: Array,
        precision: Any = None,
        preferred_element_type: Any = None,
        out_sharding: Any = None,
    ) -> Array:
        plan = parse_equation(equation, tuple(operand.ndim for operand in operands))
        transposed = plan.permutation != tuple(range(len(plan.permutation)))
        if out_sharding is not None and transposed:
            raise ValueError(
                f"out_sharding with {equation!r}, whose output is transposed; order its labels as "
                "batch, input, weight, or reshard the result"
            )
        y = dot_general(
            *operands,
            plan.numbers,
            precision=precision,
            preferred_element_type=preferred_element_type,
            out_sharding=out_sharding,
        )
        return jnp.transpose(y, plan.permutation) if transposed else y

    return einsum


@dataclass(frozen=True)
class Plan:
    """Dimension numbers for dot_general, and the permutation of its result to the output."""

    numbers: Any
    permutation: tuple[int, ...]


def parse_equation(equation: str, ndims: tuple[int, ...]) -> Plan:
    """The plan of a two-operand einsum; `...` stands for the axes its operand has beside labels."""
    terms, output = _terms(equation, ndims)
    if len(terms) != 2 or len(ndims) != 2:
        raise ValueError(f"einsum {equation!r} needs two operands: the input, then the weight")
    lhs, rhs = terms
    for term, ndim in zip(terms, ndims, strict=True):
        if len(set(term)) != len(term) or len(term) != ndim:
            raise ValueError(
                f"einsum {equation!r}: an operand of {ndim} axes does not fit {len(term)} labels, "
                "or a label stands twice in it"
            )
    shared = [label for label in lhs if label in rhs]
    batch = [label for label in shared if label in output]
    contract = [label for label in shared if label not in output]
    product = batch + [x for x in lhs if x not in shared] + [x for x in rhs if x not in shared]
    if sorted(product) != sorted(output):
        raise ValueError(
            f"einsum {equation!r}: every label must be in the output or in both operands; sum "
            "the others beforehand"
        )
    numbers = (_places(contract, lhs, rhs), _places(batch, lhs, rhs))
    return Plan(numbers, tuple(product.index(label) for label in output))


def _terms(equation, ndims):
    """The operands' and the output's labels, with `...` spelled out and `->` made explicit."""
    inputs, arrow, output = equation.replace(" ", "").partition("->")
    terms = inputs.split(",")
    spare = [c for c in string.ascii_letters if c not in equation]
    widths = [
        ndim - len(term.replace("...", "")) if "..." in term else 0
        for term, ndim in zip(terms, ndims, strict=False)
    ]
    dots = "".join(spare[: max([0, *widths])])
    if not arrow:
        labels = "".join(terms).replace(".", "")
        output = "..." * ("..." in inputs) + "".join(
            sorted(label for label in set(labels) if labels.count(label) == 1)
        )
    terms = [
        term.replace("...", dots[len(dots) - max(width, 0) :])
        for term, width in zip(terms, widths, strict=False)
    ]
    return terms, output.replace("...", dots)


def _places(labels, lhs, rhs):
    return tuple(lhs.index(x) for x in labels), tuple(rhs.index(x) for x in labels)

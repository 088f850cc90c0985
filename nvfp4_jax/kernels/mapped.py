"""The fused kernels under `jax.vmap`: one example after the other.

Each example is a tensor of its own, with its own largest magnitude and its own random bits, so
there is no larger kernel to merge them into; a loop over launches is what it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax import lax
from jax.custom_batching import custom_vmap


def one_at_a_time(call: Callable[..., Any]) -> Callable[..., Any]:
    """`call`, a function of arrays, with `vmap` as a loop over examples."""
    mapped = custom_vmap(call)

    @mapped.def_vmap
    def rule(_: int, in_batched: list[bool], *arguments: Any) -> tuple[Any, Any]:
        varying = [a for a, batched in zip(arguments, in_batched, strict=True) if batched]

        def one(varying: list[Any]) -> Any:
            rest = iter(varying)
            pairs = zip(arguments, in_batched, strict=True)
            return mapped(*(next(rest) if batched else a for a, batched in pairs))

        result = lax.map(one, varying)
        return result, jax.tree.map(lambda _: True, result)

    return mapped

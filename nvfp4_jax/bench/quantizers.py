"""Quantizers, as shares of the bandwidth of a copy.

A quantizer does little arithmetic: at its best it takes as long as moving its bytes takes, and a
copy of the same tensor says how long that is. Bytes are those that must move, whatever the
implementation: x once for each pass over it, and what is written. The scale of a tensor is known
only once all of it has been read, so quantizing takes two passes where the largest magnitude is
computed, and one where it is given.

    share = (bytes / seconds) / (bytes of the copy / seconds of the copy)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from nvfp4_jax import hadamard
from nvfp4_jax.bench.cases import Case, chosen
from nvfp4_jax.bench.options import Quantizers
from nvfp4_jax.bench.report import Column, Row, Section
from nvfp4_jax.bench.spelling import implementations, sizes
from nvfp4_jax.bench.timing import Timing, interleaved
from nvfp4_jax.kernels import select, xla
from nvfp4_jax.kernels.request import Request

ON_A_GPU, ON_A_CPU = ("8192x8192",), ("512x512",)
COPY = "copy"
COLUMNS = (
    Column("size", "size"),
    Column("case", "case"),
    Column("implementation", "implementation"),
    Column("amax", "amax"),
    Column("milliseconds", "ms", ".4f"),
    Column("gigabytes_per_second", "GB/s", ",.0f"),
    Column("share_of_copy", "of a copy", ".1%"),
)


class Variant(NamedTuple):
    """One row to be: how it is labelled, a compiled program of its inputs, and bytes."""

    case: str
    implementation: str
    amax: str | None
    call: Callable[[], Any]
    bytes: int
    flop: int


def measure(options: Quantizers, say: Callable[[str], None]) -> Section:
    """Time every case of every size and implementation.

    Raises:
      UsageError: a size, case or implementation that does not exist.
    """
    default = ON_A_CPU if jax.default_backend() == "cpu" else ON_A_GPU
    shapes = sizes("--sizes", options.sizes or default, "ROWSxCOLUMNS")
    cases, names = chosen(options.cases), implementations(options.implementation)
    rows = [row for shape in shapes for row in _rows(shape, cases, names, options, say)]
    title = "Quantizers, bf16 in, as a share of a copy's bandwidth"
    return Section("quantizers", title, COLUMNS, rows)


def _rows(shape, cases, names, options: Quantizers, say) -> list[Row]:
    rows, columns = shape
    x = jax.jit(lambda: jax.random.normal(jax.random.key(0), (rows, columns), jnp.bfloat16))()
    variants = [Variant(COPY, "xla", None, partial(jax.jit(jnp.copy), x), 2 * x.nbytes, 0)]
    for name, case in cases.items():
        say(f"quantizers {rows}x{columns}: {name}")
        for implementation in names:
            variants += _variants(name, case, implementation, x)
    calls = {str(i): variant.call for i, variant in enumerate(variants)}
    taken = interleaved(calls, options.rounds, options.calls)
    timings = list(taken.values())
    pace = variants[0].bytes / timings[0].median
    size = f"{rows}x{columns}"
    return [
        _row(size, variant, timing, pace) for variant, timing in zip(variants, timings, strict=True)
    ]


def _row(size: str, variant: Variant, timing: Timing, copy_pace: float) -> Row:
    pace = variant.bytes / timing.median
    return {
        "size": size,
        "case": variant.case,
        "implementation": variant.implementation,
        "amax": variant.amax,
        "milliseconds": 1e3 * timing.median,
        "quartiles": [1e3 * timing.low, 1e3 * timing.high],
        "bytes": variant.bytes,
        "flop": variant.flop,
        "gigabytes_per_second": pace / 1e9,
        "share_of_copy": pace / copy_pace,
    }


def _variants(name: str, case: Case, implementation: str, x: jax.Array) -> Iterator[Variant]:
    """The whole of what a linear asks for; and its kernel alone, where one takes the amax."""
    kernels = select.select(implementation)
    key = jax.random.key(1)
    if case.kind == "unpack":
        packed = jax.jit(partial(_packed, kernels, case))(x, key)
        yield _variant(name, case, implementation, None, x, kernels.from_packed, packed)
        return
    if case.kind == "amax":
        amax = partial(_xla_amax if kernels is xla else _fused_amax, case)
        yield _variant(name, case, implementation, "computed", x, amax, x)
        return
    whole = partial(_packed if case.kind == "pack" else _operands, kernels, case)
    yield _variant(name, case, implementation, "computed", x, whole, x, key)
    if kernels is not xla:
        from nvfp4_jax.bench import launches

        amax = jax.jit(partial(_fused_amax, case))(x)
        given = partial(launches.kernel, case)
        yield _variant(name, case, implementation, "given", x, given, x, amax)


def _variant(name, case: Case, implementation, amax, x, function, *arguments) -> Variant:
    """Compiled, with the bytes that must move: inputs, a pass for the amax, outputs."""
    program = jax.jit(function).lower(*arguments).compile()
    written = jax.tree.leaves(jax.eval_shape(function, *arguments))
    read = jax.tree.leaves(arguments[0])
    passes = 2 if amax == "computed" and case.kind != "amax" else 1
    moved = passes * sum(a.nbytes for a in read) + sum(a.size * a.dtype.itemsize for a in written)
    call = partial(program, *arguments)
    return Variant(name, implementation, amax, call, moved, case.flop_per_element * x.size)


def _operands(kernels: ModuleType, case: Case, x: jax.Array, key: jax.Array):
    return kernels.to_operands(x, _requests(case, key))


def _packed(kernels: ModuleType, case: Case, x: jax.Array, key: jax.Array):
    return kernels.to_packed(x, _requests(case, key)[0])


def _requests(case: Case, key: jax.Array) -> list[Request]:
    keys = jax.random.split(key, len(case.copies))
    return [
        Request(quantizer, axis, one, hadamard.fixed_signs() if quantizer.rht else None)
        for (quantizer, axis), one in zip(case.copies, keys, strict=True)
    ]


def _xla_amax(case: Case, x: jax.Array) -> jax.Array:
    """max |x| of each copy, as a compiler fuses it; the fused kernels keep NaN besides."""
    signs = hadamard.fixed_signs()
    seen = [xla.rotated(x, q, axis, signs) if q.rht else x for q, axis in case.copies]
    return jnp.stack([jnp.max(jnp.abs(one)).astype(jnp.float32) for one in seen])


def _fused_amax(case: Case, x: jax.Array) -> jax.Array:
    from nvfp4_jax.bench import launches

    return launches.amax(case, x)

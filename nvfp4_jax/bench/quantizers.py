"""Quantizers, as shares of the bandwidth of a copy.

A quantizer does little arithmetic: at its best it takes as long as moving its bytes takes, and a
copy of the same tensor says how long that is. Bytes are those that must move, whatever the
implementation: x once for each pass over it, and what is written. The scale of a tensor is known
only once all of it has been read, so quantizing takes two passes where the largest magnitude is
computed, and one where it is given.

    share = (bytes / seconds) / (bytes of the copy / seconds of the copy)

A GPU needs a tenth of a millisecond for such a tensor, not much more than a program needs to be
launched. So there a program treats several tensors, one after the other.
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
TENSORS_ON_A_GPU = 4  # that one program treats
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
    """One row to be: its labels, a compiled program with its inputs, and bytes a tensor."""

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
    size, tensors = "x".join(map(str, shape)), _tensors(shape)
    variants = [_variant(COPY, "xla", None, 0, jnp.copy, [(x,) for x in tensors])]
    for name, case in cases.items():
        say(f"quantizers {size}: {name}")
        for implementation in names:
            variants += _variants(name, case, implementation, tensors)
    calls = {str(i): variant.call for i, variant in enumerate(variants)}
    timings = list(interleaved(calls, options.rounds, options.calls).values())
    taken = [(v, t.of_each(len(tensors))) for v, t in zip(variants, timings, strict=True)]
    pace = variants[0].bytes / taken[0][1].median
    return [_row(size, variant, timing, pace) for variant, timing in taken]


def _tensors(shape) -> list[jax.Array]:
    count = 1 if jax.default_backend() == "cpu" else TENSORS_ON_A_GPU
    draw = jax.jit(lambda key: jax.random.normal(key, shape, jnp.bfloat16))
    return [draw(key) for key in jax.random.split(jax.random.key(0), count)]


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


def _variants(name: str, case: Case, implementation: str, tensors) -> Iterator[Variant]:
    """The whole of what a linear asks for; and its kernel alone, where one takes the amax.

    For 4-bit tensor cores operands are codes; what is packed to be kept is as elsewhere.
    """
    kernels, native = select.select(implementation), select.select_native(implementation)
    keys = jax.random.split(jax.random.key(1), len(tensors))  # of one key bits are drawn once
    keyed = list(zip(tensors, keys, strict=True))
    flop = case.flop_per_element * tensors[0].size
    label = partial(_variant, name, implementation)
    if case.kind == "unpack":
        pack = jax.jit(partial(_packed, kernels, case))
        yield label(None, flop, kernels.from_packed, [(pack(*one),) for one in keyed])
    elif case.kind == "amax":
        amax = partial(_xla_amax if kernels is xla else _fused_amax, case)
        yield label("computed", flop, amax, [(x,) for x in tensors], passes=1)
    else:
        to_operands = native.to_native if native else kernels.to_operands
        one = partial(_packed, kernels) if case.kind == "pack" else partial(_operands, to_operands)
        yield label("computed", flop, partial(one, case), keyed, passes=2)
        if kernels is not xla and native is None:
            yield _kernel_alone(label, case, flop, tensors)


def _kernel_alone(label: Callable[..., Variant], case: Case, flop: int, tensors) -> Variant:
    from nvfp4_jax.bench import launches

    amax = jax.jit(partial(launches.amax, case))
    kernel = partial(launches.kernel, case)
    return label("given", flop, kernel, [(x, amax(x)) for x in tensors])


def _variant(
    name: str, implementation: str, amax: str | None, flop: int, function, inputs, passes: int = 1
) -> Variant:
    """`function` of every one of `inputs` in one program, with the bytes that each must move."""

    def run(inputs):
        return [function(*arguments) for arguments in inputs]

    program = jax.jit(run).lower(inputs).compile()
    read, *_ = inputs[0]
    written = jax.eval_shape(function, *inputs[0])
    moved = passes * _bytes(read) + _bytes(written)
    return Variant(name, implementation, amax, partial(program, inputs), moved, flop)


def _bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _operands(to_operands: Callable[..., Any], case: Case, x: jax.Array, key: jax.Array):
    return to_operands(x, _requests(case, key))


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

"""Was the recipe honoured? Held against the program that runs, layer by layer and GEMM by GEMM.

For every layer a recipe's table governs, each GEMM must be in the program, and each operand that
the recipe quantizes must reach the product rounded as the recipe says: to its format, to nearest
or stochastically with Philox's bits, its block scales in theirs. What is found decides, never what
was asked for. Three outcomes:

    native       multiplied on 4-bit codes, by 4-bit tensor cores
    emulated     operands rounded to the format's values and multiplied in bf16: the same numbers,
                 and the recipe honoured, on GPUs without 4-bit tensor cores and on CPUs
    fallback     anything else: an operand that is not rounded so, a GEMM that is not there, or,
                 where native kernels were chosen, a GEMM of two NVFP4 operands that is emulated

What is not read in the program, and held by the tests of the kernels instead: the shape of blocks,
the rotation, and that a kernel computes what its instructions say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nvfp4_jax.compiled.hlo import Program, parse
from nvfp4_jax.compiled.marks import MANTISSA_BITS, Mark
from nvfp4_jax.compiled.products import Product, products
from nvfp4_jax.compiled.roundings import Reading, read
from nvfp4_jax.precision import GEMMS, OPERANDS_OF, LinearPrecision, Operand
from nvfp4_jax.quantizer import Quantizer

Table = Sequence[tuple[str, LinearPrecision]]
_ELEMENTS = {bits: name for name, bits in MANTISSA_BITS.items()}


@dataclass(frozen=True)
class OperandFound:
    """One operand of a GEMM: what the recipe asks for, and what was found.

    Attributes:
      name: `input`, `weight` or `grad`.
      asked: the quantizer in short, or `bf16`.
      found: the rounding that was read, in words.
      kernels: the kernels that round it; none where XLA's own code does, or nothing is asked.
      problem: why it is not what was asked; None if it is.
    """

    name: str
    asked: str
    found: str
    kernels: tuple[str, ...]
    problem: str | None


@dataclass(frozen=True)
class GemmFound:
    """One GEMM of one layer.

    Attributes:
      layer, gemm: which.
      format: what it runs in: `nvfp4 native`, `nvfp4 emulated`, `bf16`, or `not as asked`.
      executors: what multiplies, from `products`; more than one where it runs in several places.
      operands: its two.
      flops: of one run of the program, recomputation included; None where that is not known.
      problem: why this is a fallback; None if it is none.
    """

    layer: str
    gemm: str
    format: str
    executors: tuple[str, ...]
    operands: tuple[OperandFound, ...]
    flops: float | None
    problem: str | None


@dataclass(frozen=True)
class Other:
    """Products that no recipe governs, by what runs them."""

    executor: str
    count: int
    flops: float | None


@dataclass(frozen=True)
class Proof:
    """What a compiled program was found to do.

    Attributes:
      device: what it is compiled for.
      implementation: what was chosen there, with the reason if it is not the best there is.
      gemms: every GEMM of every layer.
      others: products outside the recipe: attention, the SSM.
      notes: what a reader should know, such as quantizers without a fused kernel.
    """

    device: str
    implementation: str
    gemms: tuple[GemmFound, ...]
    others: tuple[Other, ...]
    notes: tuple[str, ...] = ()

    @property
    def fallbacks(self) -> tuple[GemmFound, ...]:
        """The GEMMs that are not what the recipe says."""
        return tuple(gemm for gemm in self.gemms if gemm.problem)

    def share_by_format(self) -> dict[str, float]:
        """The share of the linear layers' FLOPs that runs in each format, the largest first."""
        totals: dict[str, float] = {}
        for gemm in self.gemms:
            totals[gemm.format] = totals.get(gemm.format, 0.0) + (gemm.flops or 0.0)
        whole = sum(totals.values()) or 1.0
        return {name: n / whole for name, n in sorted(totals.items(), key=lambda kv: -kv[1])}


def prove(
    text: str,
    table: Table,
    *,
    device: str = "",
    implementation: str = "",
    emulated: Mapping[tuple[LinearPrecision, str], str | None] | None = None,
    gemms: Sequence[str] = GEMMS,
    notes: Sequence[str] = (),
) -> Proof:
    """Hold the text of a compiled program against a table of precisions.

    Args:
      text: `compiled.as_text()`.
      table: (layer path, precision) of every linear layer.
      device, implementation, notes: carried along.
      emulated: where native kernels were chosen: (precision, GEMM) -> why it does not run on them,
        None if it does. Left out where no native kernels were chosen.
      gemms: which of the three the program has; `("fprop",)` for one that does not train.
    """
    program = parse(text)
    every = products(program)
    by_place = _by_place(every)
    found = [
        _judge(program, layer, gemm, precision, by_place.get((layer, gemm), []), emulated)
        for layer, precision in table
        for gemm in gemms
    ]
    layers = {layer for layer, _ in table}
    loops = program.loops_of_unknown_length()
    more = [f"{len(loops)} loops of unknown length are counted once"] if loops else []
    others = _others([p for p in every if not layers.intersection(p.layers)])
    return Proof(device, implementation, tuple(found), others, (*notes, *more))


def _by_place(every: list[Product]) -> dict[tuple[str, str], list[Product]]:
    found: dict[tuple[str, str], list[Product]] = {}
    for product in every:
        if product.place is not None:
            for layer in product.layers:
                found.setdefault((layer, product.place.gemm), []).append(product)
    return found


def _judge(
    program: Program,
    layer: str,
    gemm: str,
    precision: LinearPrecision,
    found: list[Product],
    emulated: Mapping[tuple[LinearPrecision, str], str | None] | None,
) -> GemmFound:
    asked: Sequence[Operand] = [
        getattr(getattr(precision, gemm), name) for name in OPERANDS_OF[gemm]
    ]
    quantized = any(isinstance(q, Quantizer) for q in asked)
    executors = tuple(sorted({p.executor for p in found}))
    readings = [[read(program, *arrays) for arrays in p.operands] for p in found] * quantized
    operands = _operands(gemm, asked, readings)
    native = bool(found) and all(p.native for p in found)
    problem = next((f"{o.name} {o.problem}" for o in operands if o.problem), None)
    if quantized and not found:
        problem = "no product of this name is in the program"
    elif problem is None and emulated is not None and not native and _all_nvfp4(asked):
        reason = emulated.get((precision, gemm)) or "the program multiplies otherwise"
        problem = f"runs on {', '.join(executors)} instead of 4-bit tensor cores: {reason}"
    flops = [None if p.flops is None else p.flops / len(p.layers) for p in found]
    return GemmFound(
        layer,
        gemm,
        _format(asked, native, problem),
        executors,
        operands,
        _total(flops),
        problem,
    )


def _all_nvfp4(asked: Sequence[Operand]) -> bool:
    return all(isinstance(q, Quantizer) and q.format == "nvfp4" for q in asked)


def _format(asked: Sequence[Operand], native: bool, problem: str | None) -> str:
    if problem:
        return "not as asked"
    names = [q.format if isinstance(q, Quantizer) else q for q in asked]
    name = names[0] if len(set(names)) == 1 else " x ".join(names)
    return name if name == "bf16" else f"{name} {'native' if native else 'emulated'}"


def _operands(
    gemm: str, asked: Sequence[Operand], readings: list[list[Reading]]
) -> tuple[OperandFound, ...]:
    """Each operand under the worst of what its products do to it.

    XLA may swap the two sides of a product, so the order with fewer problems is taken.
    """
    names = OPERANDS_OF[gemm]
    if not readings:
        return tuple(
            OperandFound(name, str(q), "", (), None) for name, q in zip(names, asked, strict=True)
        )
    worst: tuple[OperandFound, ...] = ()
    for pair in readings:
        orders = [
            tuple(_operand(*three) for three in zip(names, asked, order, strict=True))
            for order in (pair, pair[::-1])
        ]
        best = min(orders, key=_problems)
        worst = best if not worst or _problems(best) > _problems(worst) else worst
    return worst


def _problems(operands: Sequence[OperandFound]) -> int:
    return sum(operand.problem is not None for operand in operands)


def _operand(name: str, asked: Operand, reading: Reading) -> OperandFound:
    if not isinstance(asked, Quantizer):
        return OperandFound(name, str(asked), "", (), None)
    kernels = tuple(sorted(reading.kernels))
    return OperandFound(name, str(asked), _words(asked, reading), kernels, _problem(asked, reading))


def _words(quantizer: Quantizer, reading: Reading) -> str:
    """`e2m1 stochastic, scales e4m3`, of what was found."""
    element = _ELEMENTS[quantizer.element.mantissa_bits]
    modes = sorted(mark.mode for mark in reading.marks if mark.format == element)
    words = f"{element} {' and '.join(modes)}" if modes else f"not rounded to {element}"
    has_scales = quantizer.spec.scale_kind == "e4m3" and Mark("e4m3", "nearest") in reading.marks
    return words + ", scales e4m3" * has_scales


def _problem(quantizer: Quantizer, reading: Reading) -> str | None:
    """Why a reading is not what a quantizer does; None if it is."""
    element = _ELEMENTS[quantizer.element.mantissa_bits]
    modes = {mark.mode for mark in reading.marks if mark.format == element}
    # FP32 block scales are not rounded, and lead from the tensor to the product
    strict = quantizer.spec.scale_kind != "float32"
    if not modes:
        where = f"; it comes from {reading.unrounded[0]}" if reading.unrounded else ""
        return f"is not rounded to {quantizer.format}'s {element.upper()}{where}"
    if strict and reading.unrounded:
        return f"reaches the product unrounded from {reading.unrounded[0]}"
    if modes != {quantizer.rounding}:
        return f"is rounded {' and '.join(sorted(modes))}, and the recipe says {quantizer.rounding}"
    if quantizer.rounding == "stochastic" and not reading.random:
        return "is rounded stochastically without Philox's random bits"
    if quantizer.spec.scale_kind == "e4m3" and Mark("e4m3", "nearest") not in reading.marks:
        return "has block scales that are not rounded to E4M3"
    return None


def _others(outside: list[Product]) -> tuple[Other, ...]:
    by_executor: dict[str, list[Product]] = {}
    for product in outside:
        by_executor.setdefault(product.executor, []).append(product)
    return tuple(
        Other(name, len(group), _total([p.flops for p in group]))
        for name, group in sorted(by_executor.items())
    )


def _total(flops: Sequence[float | None]) -> float | None:
    """The sum; None where a part of it is not known."""
    return None if None in flops else float(sum(filter(None, flops)))

"""A `Proof` as plain text for a person, and as JSON for a program."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import groupby

import msgspec

from nvfp4_jax.compiled.proof import GemmFound, Proof
from nvfp4_jax.precision import GEMMS
from nvfp4_jax.recipe.table import text_table

_NUMBER = re.compile(r"_(\d+)(?=/|$)")


def as_json(proof: Proof) -> str:
    """Everything, every layer: `device`, `implementation`, `gemms`, `others`, `summary`."""
    whole = msgspec.to_builtins(proof)
    summary = {
        "share_by_format": proof.share_by_format(),
        "fallbacks": [f"{g.layer} {g.gemm}: {g.problem}" for g in proof.fallbacks],
    }
    return msgspec.json.format(
        msgspec.json.encode({**whole, "summary": summary}), indent=1
    ).decode()


def as_text(proof: Proof, every_layer: bool = False) -> str:
    """Header, a row a run of like layers, shares of FLOPs, and every fallback with its reason."""
    parts = [
        f"compiled for {proof.device}; implementation: {proof.implementation}",
        _layers(proof, every_layer),
        _shares(proof),
        _others(proof),
        _roundings(proof),
        fallback_lines(proof),
        "\n".join(proof.notes),
    ]
    return "\n\n".join(part for part in parts if part)


def fallback_lines(proof: Proof, most: int = 10) -> str:
    """Every fallback with its reason, the first few in full."""
    if not proof.fallbacks:
        return "fallbacks: none"
    lines = [f"  {g.layer} {g.gemm}: {g.problem}" for g in proof.fallbacks[:most]]
    more = len(proof.fallbacks) - most
    rest = [f"  ... and {more} more"] if more > 0 else []
    return "\n".join([f"fallbacks: {len(proof.fallbacks)} GEMMs", *lines, *rest])


def _layers(proof: Proof, every_layer: bool) -> str:
    rows: list[list[GemmFound]] = [
        list(group) for _, group in groupby(proof.gemms, key=lambda gemm: gemm.layer)
    ]
    runs = [[row] for row in rows] if every_layer else _folded(rows)
    gemms = [gemm for gemm in GEMMS if any(g.gemm == gemm for g in proof.gemms)]
    cells = [[_name(run), str(len(run)), *(_cell(g) for g in run[0])] for run in runs]
    return text_table(["layer", "n", *gemms], cells, right=(1,))


def _cell(gemm: GemmFound) -> str:
    return f"{gemm.format}\n{', '.join(gemm.executors) or '-'}"


def _folded(rows: list[list[GemmFound]]) -> list[list[list[GemmFound]]]:
    """Runs of layers of one name, in successive blocks that have it, of which all is equal."""
    by_name: dict[str, list[list[GemmFound]]] = {}
    for row in rows:
        by_name.setdefault(_NUMBER.sub("_N", row[0].layer, count=1), []).append(row)
    return [
        list(run) for group in by_name.values() for _, run in groupby(_sorted(group), key=_like)
    ]


def _sorted(rows: list[list[GemmFound]]) -> list[list[GemmFound]]:
    def block(row: list[GemmFound]) -> int:
        found = _NUMBER.search(row[0].layer)
        return int(found[1]) if found else -1

    return sorted(rows, key=block)


def _like(row: list[GemmFound]) -> tuple:
    return tuple((g.format, g.executors, g.operands, g.problem) for g in row)


def _name(run: list[list[GemmFound]]) -> str:
    first, last = run[0][0].layer, run[-1][0].layer
    found = _NUMBER.search(last)
    if len(run) == 1 or found is None:
        return first
    return _NUMBER.sub(rf"_\g<1>..{found[1]}", first, count=1)


def _shares(proof: Proof) -> str:
    rows = [[name, f"{100 * share:.1f}%"] for name, share in proof.share_by_format().items()]
    return text_table(["format", "of executed linear FLOPs"], rows, right=(1,))


def _others(proof: Proof) -> str:
    if not proof.others:
        return ""
    rows = [[o.executor, str(o.count), _flops(o.flops)] for o in proof.others]
    return text_table(["products outside the recipe", "n", "GFLOP"], rows, right=(1, 2))


def _flops(flops: float | None) -> str:
    return "not counted" if flops is None else f"{flops / 1e9:,.1f}"


def _roundings(proof: Proof) -> str:
    """Which operands are rounded how, and by what."""
    counts: dict[tuple[str, str, str], int] = {}
    for operand in (o for g in proof.gemms for o in g.operands if o.asked != "bf16"):
        by = ", ".join(operand.kernels) or "XLA"
        key = (f"{operand.name} {operand.asked}", operand.found or "-", by)
        counts[key] = counts.get(key, 0) + 1
    rows: Sequence[list[str]] = [[*key, str(n)] for key, n in sorted(counts.items())]
    return text_table(["operand", "found", "rounded by", "n"], rows, right=(3,)) if rows else ""

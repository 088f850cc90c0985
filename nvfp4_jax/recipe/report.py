"""An `Explanation` as plain text for a person, and as JSON for a program.

A 12B has 62 blocks and 137 linear layers, too many to read, so rows are folded:
`blocks_2..51/mamba/in_proj` with n = 23 speaks for every block from 2 to 51 that has this layer,
all 23 of the same shape and under the same rule.
"""

from __future__ import annotations

import re
from itertools import groupby
from typing import TYPE_CHECKING, Any

import msgspec

from nvfp4_jax.kernels.select import best, fallback
from nvfp4_jax.precision import GEMMS, OPERANDS_OF, LinearPrecision
from nvfp4_jax.recipe.table import text_table

if TYPE_CHECKING:
    from nvfp4_jax.recipe.explain import Explanation, Layer

_NUMBER = re.compile(r"_(\d+)(?=/|$)")


def as_text(explanation: Explanation, every_layer: bool, width: int) -> str:
    """Header, rules, table of layers, summary; cells fold onto two lines to fit `width`."""
    parts = [
        _header(explanation),
        _layers(explanation, every_layer, width),
        _rules(explanation),
        _summary(explanation),
        "\n".join([*_packed(explanation), *_implementation(explanation)]),
    ]
    return "\n\n".join(parts)


def as_json(explanation: Explanation) -> str:
    """The whole report; formats in full (a `Quantizer`'s fields) under `precisions`."""
    recipe = explanation.recipe
    report = {
        "recipe": {"name": recipe.name, "source": recipe.source, "digest": recipe.digest},
        "precisions": recipe.precision,
        "schedule": [entry.text for entry in recipe.schedule],
        "evaluation": recipe.evaluation,
        "num_blocks": explanation.num_blocks,
        "layers": [_layer_json(layer) for layer in explanation.layers],
        "summary": {
            "parameters": explanation.parameters,
            "linear_parameters": _linear_parameters(explanation),
            "share_by_precision": explanation.share_by_precision(),
            "share_by_format": explanation.share_by_format(),
            "share_by_format_in_blocks": explanation.share_by_format(blocks_only=True),
        },
        "implementation": {"name": best()[0], "notes": _implementation(explanation)},
    }
    return msgspec.json.format(msgspec.json.encode(report), indent=2).decode()


def operands_of(precision: LinearPrecision, gemm: str) -> dict[str, str]:
    """The short form of each operand of a GEMM: `{"input": "nvfp4", "weight": "nvfp4 16x16"}`."""
    return {name: str(getattr(getattr(precision, gemm), name)) for name in OPERANDS_OF[gemm]}


def _layer_json(layer: Layer) -> dict[str, Any]:
    return {
        "layer": layer.path,
        "shape": layer.shape,
        "parameters": layer.parameters,
        "rule": layer.rule,
        "reason": layer.reason,
        "precision": layer.precision_name,
        **{gemm: operands_of(layer.precision, gemm) for gemm in GEMMS},
    }


def _header(explanation: Explanation) -> str:
    recipe = explanation.recipe
    blocks = "" if explanation.num_blocks is None else f"{explanation.num_blocks} blocks, "
    lines = [
        f"recipe {recipe.name} ({recipe.source}), digest {recipe.digest}",
        f"model: {blocks}{len(explanation.layers)} linear layers, "
        f"{explanation.parameters:,} parameters, {_linear_parameters(explanation):,} in them",
    ]
    lines += [f"schedule: {entry.text}" for entry in recipe.schedule]
    if recipe.schedule:
        lines.append(
            "          (below: what the rules say; recipe.at(step, total_steps) is a step)"
        )
    if recipe.evaluation is not None:
        lines.append(f"evaluation: {recipe.evaluation}")
    return "\n".join(lines)


def _linear_parameters(explanation: Explanation) -> int:
    return sum(layer.parameters for layer in explanation.layers)


def _layers(explanation: Explanation, every_layer: bool, width: int) -> str:
    runs = [[x] for x in explanation.layers] if every_layer else folded(explanation.layers)
    for separator in (", ", ",\n"):
        titles = [f"{gemm}\n{separator.join(OPERANDS_OF[gemm])}" for gemm in GEMMS]
        header = ["layer", "n", "shape", "rule\ngives", *titles]
        table = text_table(header, [_row(run, separator) for run in runs], right=(1,))
        if max(map(len, table.split("\n"))) <= width:
            break
    return table


def folded(layers: tuple[Layer, ...]) -> list[list[Layer]]:
    """Runs of layers with one name, shape, rule and precision in successive blocks that have it."""
    by_name: dict[str, list[Layer]] = {}
    for layer in layers:
        by_name.setdefault(_NUMBER.sub("_N", layer.path, count=1), []).append(layer)
    runs = [
        list(run)
        for same_name in by_name.values()
        for _, run in groupby(same_name, lambda x: (x.shape, x.rule, x.precision))
    ]
    place = {layer.path: number for number, layer in enumerate(layers)}
    return sorted(runs, key=lambda run: place[run[0].path])


def _row(run: list[Layer], separator: str) -> list[str]:
    layer = run[0]
    return [
        _run_name(run),
        str(len(run)),
        "x".join(map(str, layer.shape)),
        f"{layer.rule} {layer.precision_name}",
        *(_gemm_cell(layer.precision, gemm, separator) for gemm in GEMMS),
    ]


def _run_name(run: list[Layer]) -> str:
    first, last = run[0].path, run[-1].path
    if len(run) == 1:
        return first
    found = _NUMBER.search(last)
    assert found is not None  # a run has one name but for its number
    return _NUMBER.sub(rf"_\g<1>..{found[1]}", first, count=1)


def _gemm_cell(precision: LinearPrecision, gemm: str, separator: str) -> str:
    words = operands_of(precision, gemm)
    return "bf16" if set(words.values()) == {"bf16"} else separator.join(words.values())


def _rules(explanation: Explanation) -> str:
    layers = explanation.layers
    rows = []
    for rule in explanation.recipe.rules:
        decided = sum(layer.rule == rule.number for layer in layers)
        line = str(rule.line or "")
        rows.append([str(rule.number), line, rule.text, rule.precision, str(decided)])
    return text_table(["rule", "line", "selects", "precision", "decides"], rows, right=(0, 1, 4))


def _summary(explanation: Explanation) -> str:
    whole, inside = explanation.share_by_format(), explanation.share_by_format(blocks_only=True)
    rows = [[name, _percent(share), _percent(inside.get(name, 0))] for name, share in whole.items()]
    formats = text_table(["format", "of linear FLOPs", "of those in blocks"], rows, right=(1, 2))
    rows = [[name, _percent(share)] for name, share in explanation.share_by_precision().items()]
    precisions = text_table(["precision", "of linear parameters"], rows, right=(1,))
    unused = [name for name in explanation.recipe.precision if name not in _used(explanation)]
    note = f"\n\ndefined and used nowhere: {', '.join(unused)}" if unused else ""
    return f"{formats}\n\n{precisions}{note}"


def _packed(explanation: Explanation) -> list[str]:
    """Which precisions keep inputs for the backward pass in their quantized form."""
    used = {layer.precision_name: layer.precision for layer in explanation.layers}
    packed = [name for name, precision in used.items() if precision.residuals == "packed"]
    return [f"kept packed for the backward pass: the inputs under {', '.join(packed)}"] * bool(
        packed
    )


def _implementation(explanation: Explanation) -> list[str]:
    """What quantizes on this machine, and what falls back to plain XLA, with the reason."""
    name, reason = best()
    lines = [f"implementation on this machine: {name}" + (f" ({reason})" if reason else "")]
    quantizers = {q for layer in explanation.layers for q in layer.precision.quantizers}
    ordered = sorted(quantizers, key=str)
    return lines + [f"  {q} as xla: {why}" for q in ordered if (why := fallback(q))]


def _used(explanation: Explanation) -> set[str]:
    recipe = explanation.recipe
    named = {rule.precision for rule in recipe.rules} | {e.precision for e in recipe.schedule}
    return named | {recipe.evaluation or "bf16", "bf16"}


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%"

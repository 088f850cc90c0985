"""A forecast as text for a person, and as JSON for a program."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import msgspec

from nvfp4_jax.planning.forecast import Forecast
from nvfp4_jax.planning.memory import DEFAULT_POOL, LARGEST_POOL, usable
from nvfp4_jax.recipe.table import text_table

_DAY = 86_400


def as_json(forecast: Forecast) -> str:
    """Everything, in bytes, FLOPs and seconds."""
    f = forecast
    whole = {
        "model": f.job.model_name,
        "recipe": f.job.recipe.name,
        "gpu": f.machine.gpu.kind,
        "gpus": f.candidate.mesh.size,
        "mesh": f.candidate.mesh.sizes,
        "microbatches": f.candidate.microbatches,
        "remat": f.candidate.remat,
        "batch": f.job.batch,
        "length": f.job.length,
        "memory": {**f.memory.by_kind, "total": f.memory.total, "usable": usable(f.machine.gpu)},
        "fits": f.fits,
        "flops": f.flops,
        "collectives": [dataclasses.asdict(row) for row in f.traffic],
        "step_seconds": f.timing.seconds,
        "spent": dict(f.timing.spent),
        "bound_by": f.timing.bound_by,
        "mfu": f.mfu,
        "tokens": f.job.run_tokens,
        "steps": f.job.steps,
        "run_seconds": f.run_seconds,
        "assumptions": dict(_assumptions(f)),
        "notes": list(f.notes),
    }
    return msgspec.json.format(msgspec.json.encode(whole), indent=1).decode()


def as_text(forecast: Forecast) -> str:
    """What it is of, then memory, FLOPs, collectives, time, and what was assumed."""
    parts = [
        _head(forecast),
        _memory(forecast),
        _flops(forecast),
        _traffic(forecast),
        _time(forecast),
        text_table(["assumed, of one GPU", ""], [list(row) for row in _assumptions(forecast)]),
        "\n".join((*forecast.notes, "Nothing ran: every time is an estimate.")),
    ]
    return "\n\n".join(part for part in parts if part)


def _head(f: Forecast) -> str:
    tokens = f"{f.job.batch} x {f.job.length} = {f.job.tokens / 1e6:,.2f} M tokens a step"
    gpus = f"{f.candidate.mesh.size} x {f.machine.gpu.kind}"
    return f"{f.job.model_name}, {f.job.recipe.name}, {gpus}; {tokens}\n{f.candidate}"


def _memory(f: Forecast) -> str:
    rows = [[name, _gb(n)] for name, n in f.memory.by_kind.items()]
    table = text_table(["memory of a GPU", "GB"], [*rows, ["total", _gb(f.memory.total)]], (1,))
    limit = usable(f.machine.gpu)
    verdict = f"{'fits' if f.fits else 'DOES NOT FIT'}: {_gb(limit)} GB can be had"
    if f.fits and f.memory.total > usable(f.machine.gpu, DEFAULT_POOL):
        verdict += f", with XLA_PYTHON_CLIENT_MEM_FRACTION={LARGEST_POOL}"
    return f"{table}\n{verdict}"


def _flops(f: Forecast) -> str:
    whole = sum(f.flops.values())
    rows = [
        [name, f"{n / 1e12:,.1f}", _percent(n / whole)]
        for name, n in sorted(f.flops.items(), key=lambda row: -row[1])
    ]
    return text_table(["products, of a GPU and step", "TFLOP", "share"], rows, (1, 2))


def _traffic(f: Forecast) -> str:
    if not f.traffic:
        return ""
    rows = [
        [
            row.kind,
            " x ".join(row.axes),
            row.dtype,
            f"{row.count:,}",
            _gb(row.sent),
            f"{1e3 * row.seconds:,.1f}",
        ]
        for row in f.traffic
    ]
    header = ["collectives of a step", "over", "dtype", "n", "GB sent", "ms"]
    return text_table(header, rows, (3, 4, 5))


def _time(f: Forecast) -> str:
    timing = f.timing
    rows = [
        [name, f"{1e3 * s:,.1f}", _percent(s / timing.seconds)]
        for name, s in sorted(timing.spent.items(), key=lambda row: -row[1])
        if s > 0.0005 * timing.seconds
    ]
    whole = ["a step", f"{1e3 * timing.seconds:,.1f}", "100.0%"]
    table = text_table(["time goes into", "ms", "share"], [*rows, whole], (1, 2))
    hidden = timing.communication - timing.waiting
    lines = [
        f"bound by {timing.bound_by}; of {timing.communication:.3f} s of communication "
        f"{max(hidden, 0):.3f} s pass behind arithmetic",
        f"MFU {_percent(f.mfu)} (model FLOPs, to the dense bf16 peak); "
        f"{f.job.tokens / timing.seconds:,.0f} tokens/s",
        f"{f.job.run_tokens:.3g} tokens: {f.job.steps:,} steps, {f.run_seconds / _DAY:,.1f} days",
    ]
    return "\n".join([table, *lines])


def _assumptions(f: Forecast) -> Sequence[tuple[str, str]]:
    machine, shares = f.machine, f.machine.shares
    formats = ", ".join(f"{name} {n / 1e12:,.0f}" for name, n in machine.flops.items())
    domain = f"{machine.domain} GPUs"
    return [
        ("peak TFLOP/s, dense", formats),
        ("products reach of it", _percent(shares.product)),
        ("attention reaches of it, in bf16", _percent(shares.attention)),
        ("HBM", f"{machine.gpu.bandwidth / 1e9:,.0f} GB/s"),
        ("what streams reaches of it", _percent(shares.memory)),
        ("the state-space scan reaches of it", _percent(shares.scan)),
        (f"NVLink, one way, among {domain}", f"{machine.nvlink / 1e9:,.0f} GB/s"),
        ("network, one way", f"{machine.network / 1e9:,.0f} GB/s"),
        ("a collective reaches of both", _percent(shares.wire)),
        ("a collective takes at least", f"{1e6 * shares.latency:.0f} us"),
        ("a kernel takes at least", f"{1e6 * shares.launch:.0f} us"),
        ("overlap", "as the compiled program orders it"),
    ]


def _gb(count: float) -> str:
    return f"{count / 1e9:,.2f}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%"

"""`nvfp4 bench`: measure, show, and keep."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import jax
from rich.console import Console

from nvfp4_jax.bench.options import All, Linear, Memory, Quantizers, Step
from nvfp4_jax.bench.report import ON_A_CPU, Section, console, device, show
from nvfp4_jax.bench.spelling import at_least_one, writable
from nvfp4_jax.training.errors import UsageError
from nvfp4_jax.training.files import write_json

# The options of each benchmark, by the module that has its `measure`.
BENCHMARKS: dict[type, str] = {
    Quantizers: "quantizers",
    Linear: "linear",
    Memory: "memory",
    Step: "step",
}


def bench(options: Any) -> None:
    """Run the benchmark that `options` belong to, print its table, and write JSON if asked.

    Raises:
      UsageError: an option that cannot be honoured; nothing is written then.
      RecipeError: a recipe that cannot be read or does not fit the model.
    """
    _run(options.each() if isinstance(options, All) else [options], options.json)


def _run(several: Sequence[Any], path: Any) -> None:
    writable("--json", path)
    for options in several:
        at_least_one("--rounds", getattr(options, "rounds", None))
        at_least_one("--calls", getattr(options, "calls", None))
    errors, out = Console(stderr=True, soft_wrap=True), console()
    facts = device()
    sections = [_measure(options, errors, out) for options in several]
    if facts["platform"] == "cpu":
        out.print(ON_A_CPU)
    if path is not None:
        note = {"note": ON_A_CPU} if facts["platform"] == "cpu" else {}
        figures = {section.name: section.to_dict() for section in sections}
        write_json(path, {"device": facts, **note, **figures})


def _measure(options: Any, errors: Console, out: Console) -> Section:
    module = importlib.import_module(f"nvfp4_jax.bench.{BENCHMARKS[type(options)]}")

    def say(message: str) -> None:
        errors.print(message, highlight=False, markup=False)

    try:
        section = module.measure(options, say)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise UsageError(
            f"{module.__name__.rpartition('.')[2]} does not fit into the memory of "
            f"{jax.devices()[0].device_kind}; give it smaller sizes"
        ) from None
    show(out, section)
    return section

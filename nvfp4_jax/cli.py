"""The command line: `nvfp4 train`, `explain`, `compare`, `plan`, `data`, `bench`.

A command is a frozen dataclass: its fields are the flags, its docstring the help. Exit status 0
is success; 2 a request that cannot be honoured, with one message on standard error that names the
place and the remedy, and nothing written; 1 a disk or folder that failed; 3 a run that diverged;
130 Ctrl-C; 141 output that nobody reads on.

What takes time to import (JAX, Flax, Orbax) is imported by the command that needs it.
"""

from __future__ import annotations

import importlib.metadata
import logging
import os
import select
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal, get_args

import tyro

from nvfp4_jax.bench.options import All, Linear, Memory, Quantizers, Step
from nvfp4_jax.data.options import Prepare, Verify
from nvfp4_jax.planning.options import Plan
from nvfp4_jax.quantizer import nearest_spelling
from nvfp4_jax.training.config import TrainConfig
from nvfp4_jax.training.quiet import quieten_orbax

USAGE = """\
usage: nvfp4 COMMAND [OPTIONS]

  train     Train a model on text, with the numerics that a recipe says.
  explain   Show the precision of every layer of a model under a recipe.
  compare   Train under several recipes, on the same data and seeds, and show the gaps.
  plan      Foresee a run on a cluster: memory, communication, time; find its mesh.
  data      Prepare texts as token shards, and verify them.
  bench     Measure quantizers, a linear layer, memory and steps, as ratios to BF16.

  nvfp4 COMMAND --help lists the options of a command; nvfp4 --version prints the version.
"""


@dataclass(frozen=True, kw_only=True)
class Explain:
    """Show the precision of every layer of a model under a recipe; nothing is allocated.

    Attributes:
      model: A preset (tiny, nano-12b-v2, ...) or a JSON file with the fields of a HybridConfig.
      recipe: A recipe's name (nvfp4, nvfp4-12b, ...) or the path of a TOML file.
      json: Print JSON.
      all: Give each layer its own row.
      compiled: Compile the training step, and show what it really does: what multiplies, and
        whether each operand is rounded as the recipe says. Takes a minute and more.
      gpu: With --compiled: for another GPU than the one at hand (a100, h100, h200, b200, gb200,
        gb300), which need not be there.
      batch: With --compiled: rows a step; 8 if left out.
      length: With --compiled: tokens a row; 256 if left out.
      microbatches: With --compiled: parts a batch is computed in.
      remat: With --compiled: as of train.
      scan: With --compiled: as of train.
    """

    model: str = "tiny"
    recipe: str = "nvfp4"
    json: bool = False
    all: bool = False
    compiled: bool = False
    gpu: str | None = None
    batch: int | None = None
    length: int | None = None
    microbatches: int | None = None
    remat: Literal["none", "linear_inputs", "block"] | None = None
    scan: Literal["auto", "on", "off"] | None = None

    @property
    def of_the_step(self) -> dict[str, Any]:
        """What was given of the step's own options, by the names of `StepShape`."""
        names = ("batch", "length", "microbatches", "remat", "scan")
        return {name: value for name in names if (value := getattr(self, name)) is not None}


@dataclass(frozen=True, kw_only=True)
class Compare(TrainConfig):
    """Train under several recipes, on the same data and seeds, and show the gaps to the first.

    Attributes:
      recipes: Names or paths of recipes; the others are measured against the first.
      seeds: How many seeds, from --seed on.
    """

    recipes: tyro.conf.Positional[tuple[str, ...]]
    seeds: int = 1
    recipe: tyro.conf.Suppress[str] = "nvfp4"


Bench = (
    Annotated[Quantizers, tyro.conf.subcommand("quantizers")]
    | Annotated[Linear, tyro.conf.subcommand("linear")]
    | Annotated[Memory, tyro.conf.subcommand("memory")]
    | Annotated[Step, tyro.conf.subcommand("step")]
    | Annotated[All, tyro.conf.subcommand("all")]
)

Data = (
    Annotated[Prepare, tyro.conf.subcommand("prepare")]
    | Annotated[Verify, tyro.conf.subcommand("verify")]
)


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command; `argv` stands for the process's own arguments.

    Raises:
      SystemExit: with the exit status, when it is not 0 (and for --help, when it is). That is 141,
        as of a program that SIGPIPE ended, where nobody reads on (`nvfp4 explain | head`).
    """
    try:
        try:
            _main(argv)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        if not _nobody_reads():
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is not flushed
        raise SystemExit(128 + signal.SIGPIPE) from None


def _nobody_reads() -> bool:
    """Whether standard output is a pipe that was closed at its other end."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _main(argv: Sequence[str] | None) -> None:
    command, *arguments = list(sys.argv[1:] if argv is None else argv) or [""]
    if command in ("-h", "--help"):
        print(USAGE, end="")
        return
    if command == "--version":
        print(importlib.metadata.version("nvfp4_jax"))
        return
    if command not in _COMMANDS:
        what = f"unknown command {command!r}" if command else "no command"
        _fail("nvfp4", f"{what}: {nearest_spelling(command, tuple(_COMMANDS))}")
    options, action = _COMMANDS[command]
    logging.getLogger("jax._src.xla_bridge").addFilter(_one_line)
    quieten_orbax()
    chosen = _parse(f"nvfp4 {command}", options, arguments)
    _run(f"nvfp4 {command}", action, chosen)


def _parse(prog: str, options: Any, arguments: list[str]) -> Any:
    """What was chosen, of a command or of one of its tasks (`bench linear`).

    A task is parsed by itself, and what follows a word that is none not at all: tyro would seek
    the flags among all tasks, and call them `nvfp4 linear`.
    """
    tasks = {task.__origin__.__name__.lower(): task.__origin__ for task in get_args(options)}
    word = arguments[0] if arguments else ""
    if word in tasks:
        prog, options, arguments = f"{prog} {word}", tasks[word], arguments[1:]
    elif tasks:
        is_flag = word.startswith("-") and word not in ("-h", "--help")
        arguments = [] if is_flag else arguments[:1]
    return tyro.cli(options, prog=prog, args=arguments, config=(tyro.conf.FlagCreatePairsOff,))


def _run(prog: str, action: Any, options: Any) -> None:
    """Call `action(options)`, turning what a person can mend into a message and a status."""
    from nvfp4_jax.training.errors import outcome

    try:
        action(options)
    except BaseException as error:
        known = outcome(error)
        if known is None:
            raise
        _fail(prog, *known)


def _one_line(record: logging.LogRecord) -> bool:
    """A GPU plugin that does not start is worth a line, not a traceback: JAX goes on without it."""
    if record.exc_info and record.exc_info[1]:
        record.msg, record.args = f"{record.getMessage()}: {record.exc_info[1]}", ()
        record.exc_info = None
    return True


def _fail(prog: str, message: str, status: int = 2) -> None:
    print(f"{prog}: {message}", file=sys.stderr)
    raise SystemExit(status)


def _train(config: TrainConfig) -> None:
    from nvfp4_jax.training import train
    from nvfp4_jax.training.distributed import is_first, joined

    with joined(config.distributed, config.processes, config.process):
        summary = train(config)
        if is_first():
            print(summary)
    if summary.interrupted:
        raise SystemExit(130)


def _explain(options: Explain) -> None:
    from nvfp4_jax.recipe import load_recipe
    from nvfp4_jax.training.errors import UsageError
    from nvfp4_jax.training.model_choice import choose_model
    from nvfp4_jax.training.state import abstract_model

    config = choose_model(options.model)
    recipe = load_recipe(options.recipe)
    idle = [*options.of_the_step, *(["gpu"] if options.gpu is not None else [])]
    if idle and not options.compiled:
        raise UsageError(f"--{idle[0]} has no effect without --compiled; add that or leave it out")
    if options.compiled:
        _explain_compiled(options, config, recipe)
    else:
        explanation = recipe.explain(abstract_model(config), num_blocks=config.num_blocks)
        print(explanation.to_json() if options.json else explanation.text(every_layer=options.all))


def _explain_compiled(options: Explain, config: Any, recipe: Any) -> None:
    from nvfp4_jax.compiled.report import as_json, as_text
    from nvfp4_jax.training.errors import UsageError
    from nvfp4_jax.training.proof import StepShape, prove_step

    if options.gpu is not None:
        import jax

        jax.config.update("jax_platforms", "cpu")  # nothing runs; a plugin need not find its GPU
    try:
        shape = StepShape(**options.of_the_step)
        proof = prove_step(config, recipe, gpu=options.gpu, shape=shape)
    except ValueError as error:
        raise UsageError(str(error)) from None
    print(as_json(proof) if options.json else as_text(proof, every_layer=options.all))


def _compare(options: Compare) -> None:
    from nvfp4_jax.training.compare import compare
    from nvfp4_jax.training.distributed import joined
    from nvfp4_jax.training.errors import Interrupted

    values = {f.name: getattr(options, f.name) for f in fields(TrainConfig)}
    interrupted = False
    with joined(options.distributed, options.processes, options.process):
        try:
            compare(TrainConfig(**values), options.recipes, options.seeds)
        except Interrupted:  # processes that have all stopped end together
            interrupted = True
    if interrupted:
        raise SystemExit(130)


def _plan(options: Plan) -> None:
    from nvfp4_jax.planning.run import plan

    plan(options)


def _data(options: Prepare | Verify) -> None:
    from nvfp4_jax.data.prepare import prepare
    from nvfp4_jax.data.verify import verify

    if isinstance(options, Prepare):
        prepare(options)
    else:
        verify(options)


def _bench(options: Any) -> None:
    from nvfp4_jax.bench.run import bench

    bench(options)


_COMMANDS: dict[str, tuple[Any, Any]] = {
    "train": (TrainConfig, _train),
    "explain": (Explain, _explain),
    "compare": (Compare, _compare),
    "plan": (Plan, _plan),
    "data": (Data, _data),
    "bench": (Bench, _bench),
}

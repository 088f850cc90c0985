"""A run killed fifty times at random moments: is anything lost, does a bit differ?

Claim: no. Parameters, metrics.jsonl and evaluation.jsonl equal an uninterrupted run's, byte for
byte; no checkpoint is damaged.
Command: python experiments/random_kills.py [--kills 50 --seed 0]
Cost: ten minutes on two CPU cores, nearly all of it starting again.
Method: real processes of `nvfp4 train`, a tiny model whose recipe rounds stochastically, rotates
and switches precision half way. Each is killed at a moment drawn at random: as it starts; between
two steps; while a checkpoint is being written (Orbax's temporary folder is there); while it is
being sealed; just after it got its name. By SIGKILL, which no handler sees; by SIGTERM, after which
the process saves and leaves; or by SIGTERM and, before it is done with that, SIGKILL, as clusters
do. Processes are forked from a server that has imported everything.
Expected: "equal: True" three times, 50 kills, at least ten of them in the middle of a save.
Found: see BENCHMARKS.md.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import random
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path

import tyro

PATIENCE = 1800  # seconds that a process may take before it is given up
SAVING = ("writing", "sealing")
SHARES = {"starting": 2, "stepping": 5, "writing": 5, "sealing": 3, "named": 3}
BY = {"SIGKILL": 3, "SIGTERM": 1, "SIGTERM, SIGKILL": 1}
COMPARED = ("parameters.safetensors", "metrics.jsonl", "evaluation.jsonl")

MODEL = {
    "pattern": "M-",
    "hidden": 16,
    "vocabulary": 256,
    "ffn": 32,
    "mamba_heads": 2,
    "mamba_head_dim": 8,
    "state": 8,
    "groups": 1,
    "chunk": 8,
}
RECIPE = """\
[precision.low.fprop]
input  = { format = "nvfp4" }
weight = { format = "nvfp4", granularity = "16x16" }
[precision.low.wgrad]
input  = { format = "nvfp4", rht = 16 }
grad   = { format = "nvfp4", rht = 16, rounding = "stochastic" }
[[rule]]
match = "blocks_1/mlp/up"
precision = "low"
[[rule]]
match = "**"
precision = "bf16"
[[schedule]]
from = 0.5
gemms = ["fprop"]
precision = "bf16"
"""

Command = Callable[[Path], list[str]]  # workdir -> the words after `nvfp4`


@dataclass(frozen=True)
class Options:
    """How often, and at which moments: the seed draws them."""

    kills: int = 50
    seed: int = 0
    folder: Path | None = None


@dataclass(frozen=True)
class Kill:
    """One end of a process.

    Attributes:
      moment: what it was doing.
      by: the signals.
      status: its exit status; negative: the signal it died of.
      step: steps in the log then.
    """

    moment: str
    by: str
    status: int | None
    step: int


def server() -> ForkServerContext:
    """Where processes start with the imports done."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["nvfp4_jax.cli", "nvfp4_jax.training.loop"])
    return context


def start(context: ForkServerContext, words: Sequence[str], log: Path) -> ForkServerProcess:
    """`nvfp4` with these words as a process of its own, its output added to `log`."""
    process = context.Process(target=run_command, args=(list(words), str(log)))
    process.start()
    return process


def run_command(words: list[str], log: str) -> None:
    """In a child: the command, its output in a file."""
    with Path(log).open("a", buffering=1) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        import jax

        from nvfp4_jax.cli import main

        jax.config.update("jax_platforms", "cpu")
        main(words)


def finish(process: ForkServerProcess, log: Path) -> None:
    """Wait for a process to end well."""
    process.join(PATIENCE)
    if process.exitcode != 0:
        raise RuntimeError(f"ended with {process.exitcode}:\n{log.read_text()}")


def lines(workdir: Path) -> int:
    """Steps in the log."""
    path = workdir / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def is_writing(workdir: Path) -> bool:
    """Whether a checkpoint is being written, or is not yet named."""
    return any(workdir.glob("checkpoints/*.writing*"))


def is_sealing(workdir: Path) -> bool:
    """Whether all processes have written theirs, and the digests are being taken."""
    return any(workdir.glob("checkpoints/*.writing"))


def named(workdir: Path) -> int:
    """The newest checkpoint that has its name."""
    steps = (path.name for path in workdir.glob("checkpoints/*"))
    return max((int(step) for step in steps if step.isdigit()), default=0)


def wait_until(condition: Callable[[], bool], process: ForkServerProcess) -> None:
    """Return when it holds, or the process has ended."""
    deadline = time.monotonic() + PATIENCE
    while not condition() and process.is_alive() and time.monotonic() < deadline:
        time.sleep(0.0002)


def kill(
    process: ForkServerProcess, workdir: Path, moment: str, by: str, dice: random.Random
) -> Kill:
    """End a process at a moment, some steps past where the one before it ended."""
    target = lines(workdir) + dice.randint(2, 8)
    if moment == "starting":
        time.sleep(dice.uniform(0, 3))
    else:
        wait_until(lambda: lines(workdir) >= target, process)
        _wait_for(moment, process, workdir, dice)
    step = lines(workdir)
    for number, name in enumerate(by.split(", ")):
        if number:
            time.sleep(dice.uniform(0, 0.3))
        if process.is_alive() and process.pid:
            with contextlib.suppress(ProcessLookupError):  # it ended, and we are not told yet
                os.kill(process.pid, signal.Signals[name])
    process.join(PATIENCE)
    return Kill(moment, by, process.exitcode, step)


def _wait_for(moment: str, process: ForkServerProcess, workdir: Path, dice: random.Random) -> None:
    before = named(workdir)
    conditions = {
        "writing": is_writing,
        "sealing": is_sealing,
        "named": lambda w: named(w) > before,
    }
    if moment in conditions:
        wait_until(lambda: conditions[moment](workdir), process)
    time.sleep(dice.uniform(0, 0.02 if moment in ("stepping", "writing") else 0.002))


def draw(kills: int, dice: random.Random) -> list[tuple[str, str]]:
    """Moments and signals in the proportions of `SHARES` and `BY`, in random order."""
    total = sum(SHARES.values())
    moments = [m for m, share in SHARES.items() for _ in range(-(-kills * share // total))]
    dice.shuffle(moments)
    signals = dice.choices(list(BY), list(BY.values()), k=kills)
    return list(zip(moments[:kills], signals, strict=True))


def run_killed(
    context: ForkServerContext, command: Command, workdir: Path, log: Path, kills: int, seed: int
) -> list[Kill]:
    """Start, kill and start again, `kills` times, and once more to the end."""
    dice, done = random.Random(seed), []
    for moment, by in draw(kills, dice):
        process = start(context, command(workdir), log)
        done.append(kill(process, workdir, moment, by, dice))
    finish(start(context, command(workdir), log), log)
    return done


def differing(one: Path, other: Path) -> list[str]:
    """The files of two finished runs that are not the same to the byte."""
    return [n for n in COMPARED if (one / n).read_bytes() != (other / n).read_bytes()]


def write_inputs(folder: Path) -> None:
    """A text, a model and a recipe."""
    (folder / "text").mkdir(parents=True, exist_ok=True)
    for i in range(12):
        words = [f"word{i * k % 17} of document {i}\n" for k in range(20 + 5 * i)]
        (folder / "text" / f"{i:02}.txt").write_text("".join(words))
    (folder / "model.json").write_text(json.dumps(MODEL))
    (folder / "recipe.toml").write_text(RECIPE)


def command_in(folder: Path, steps: int, save_every: int = 3) -> Command:
    """The command of a run of `steps` on those inputs."""
    words = f"""train --model {folder}/model.json --recipe {folder}/recipe.toml --data {folder}/text
        --steps {steps} --batch 4 --length 32 --save-every {save_every} --keep 2 --keep-every 60
        --eval-every 20 --eval-batches 2 --compilation-cache {folder}/compilation-cache --workdir"""
    return lambda workdir: [*words.split(), str(workdir)]


def main(options: Options) -> None:
    """Run twice, once in peace, and compare."""
    folder = options.folder or Path(tempfile.mkdtemp(prefix="random_kills-"))
    write_inputs(folder)
    context, log = server(), folder / "log.txt"
    command = command_in(folder, 10 * options.kills)
    whole, cut = folder / "whole", folder / "cut"
    finish(start(context, command_in(folder, 10 * options.kills, 60)(whole), log), log)
    began = time.monotonic()
    done = run_killed(context, command, cut, log, options.kills, options.seed)
    report(done, time.monotonic() - began)
    different = differing(whole, cut)
    for name in COMPARED:
        print(f"{name} equal: {name not in different}")
    damaged = (cut / "checkpoints-unreadable").exists()
    print(f"a checkpoint was damaged: {damaged}; {lines(cut)} steps; in {folder}")
    if different or damaged:
        raise SystemExit(1)


def report(done: list[Kill], seconds: float) -> None:
    """Say what happened."""
    for (moment, by), count in sorted(Counter((k.moment, k.by) for k in done).items()):
        print(f"{count:3} {moment:9} {by}")
    statuses = Counter(k.status for k in done)
    saving = sum(k.moment in SAVING for k in done)
    print(f"{len(done)} kills, {saving} in the middle of a save, exit statuses {dict(statuses)}")
    print(f"{seconds:.0f} s")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))

"""The run: batches in, logs and checkpoints out, step by step, and nothing lost when cut off.

At the boundary of step s, in this order: its line in metrics.jsonl, an evaluation if due, a
checkpoint if due. A checkpoint's position in the data is taken before the next batch is read, so
what it restores is exactly what the uninterrupted run would have seen next.

The device works while the host reads the next batch; then the host waits for the loss, because a
step that went bad must stop the run, not be found out later.
"""

from __future__ import annotations

import contextlib
import signal
import time

import grain
import jax
from rich.console import Console

from nvfp4_jax.training.bits import bits_per_byte
from nvfp4_jax.training import checkpoint
from nvfp4_jax.training.compilation import compilation_cache
from nvfp4_jax.training.config import TrainConfig
from nvfp4_jax.training.corpus import AnyCorpus
from nvfp4_jax.training.data import (
    Batch,
    bytes_per_target,
    held_out_batches,
    training_batches,
)
from nvfp4_jax.training.engine import Engine
from nvfp4_jax.training.errors import Diverged, UsageError
from nvfp4_jax.training.interrupt import StopRequest, stop_requests
from nvfp4_jax.training.metrics import Lines
from nvfp4_jax.training.prepare import Run, prepare
from nvfp4_jax.training.progress import Reporter
from nvfp4_jax.training.proof import judge_of
from nvfp4_jax.training.resume import begin, parameter_count
from nvfp4_jax.training.state import TrainState
from nvfp4_jax.training.step import Measured
from nvfp4_jax.training.summary import Summary, summarize
from nvfp4_jax.training.workdir import (
    COMPILED,
    EVALUATION,
    METRICS,
    TIMINGS,
    remove_if_not_begun,
    write_description,
    write_parameters,
    write_plot,
)

PLOT_EVERY_SECONDS = 60


def train(
    config: TrainConfig, console: Console | None = None, corpus: AnyCorpus | None = None
) -> Summary:
    """Train as `config` says, continuing what its workdir holds.

    Args:
      config: the choices.
      console: where progress is shown; standard output if left out.
      corpus: the text, if it has been read already.

    Raises:
      UsageError, RecipeError: a choice that cannot be honoured, or a compiled step that does not do
        what the recipe says; nothing was written. Where a schedule brings on such a step, the run
        is saved at the boundary before it.
      Diverged: `config.max_skipped` steps in a row were skipped; names the first bad layer.
    """
    began = time.monotonic()
    console = console or Console()
    run = prepare(config, corpus)
    cache = config.compilation_cache or config.workdir / COMPILED
    with contextlib.ExitStack() as stack:
        if not config.workdir.exists():
            stack.callback(remove_if_not_begun, config.workdir)
        stack.enter_context(compilation_cache(cache))
        state, position = begin(run, lambda line: _print(console, line))
        _announce(run, state, console)
        engine = Engine(run, _held_out(run), judge_of(run))
        engine.prepare(state, int(state.step))
        write_description(run)
        loop = _Loop(run, state, position, engine, console, stack)
        try:
            stopped_by = loop.run_to_end()
        except UsageError:  # a schedule's next step was refused, and the last boundary is whole
            loop.save()
            raise
        loop.save()
    if not stopped_by:
        write_parameters(run, loop.state)
    write_plot(run)
    seconds = time.monotonic() - began
    return summarize(config.workdir, int(loop.state.skipped), seconds, stopped_by)


class _Loop:
    """A run in progress: the state, where the data stands, and the open files."""

    def __init__(
        self,
        run: Run,
        state: TrainState,
        position: dict | None,
        engine: Engine,
        console: Console,
        stack: contextlib.ExitStack,
    ) -> None:
        config, workdir = run.config, run.config.workdir
        self.run, self.state, self.done = run, state, int(state.step)
        self.data = _data_at(run, position)
        self.position = self.data.get_state()
        self.saved = self.done if position else -1
        self.bytes_per_target = bytes_per_target(
            run.corpus.held_out, batch=config.batch, length=config.length, count=config.eval_batches
        )
        self.engine = engine
        self.plotted = time.monotonic()
        self.first = self.done + 1  # these steps compile before they run
        self.switches = {phase.start + 1 for phase in run.phases}
        self.metrics, self.evaluations, self.timings = (
            stack.enter_context(Lines(workdir / name, through=self.done))
            for name in (METRICS, EVALUATION, TIMINGS)
        )
        self.checkpoints = stack.enter_context(
            checkpoint.Checkpoints(workdir / "checkpoints", config.keep, config.keep_every)
        )
        self.stop: StopRequest = stack.enter_context(stop_requests())
        self.report = stack.enter_context(
            Reporter(
                console,
                run.recipe.name,
                config.steps,
                self.done,
                config.tokens_per_step,
                run.corpus.bytes_per_token,
            )
        )

    def run_to_end(self) -> signal.Signals | None:
        """Take every step that is left; returns the signal that ended it early, if one did."""
        batch = self.read()
        while self.done < self.run.config.steps and not self.stop.signal:
            if isinstance(batch, UsageError):
                raise batch
            batch = self.step(batch)
            self.at_boundary()
        return self.stop.signal if self.done < self.run.config.steps else None

    def read(self) -> Batch | UsageError:
        """The next batch, or why there is none: to be raised at a boundary, with nothing lost."""
        try:
            return next(self.data)
        except UsageError as error:
            return error

    def step(self, batch: Batch) -> Batch | UsageError:
        """One step on `batch`, its line in the log; returns the next batch."""
        began = time.monotonic()
        self.state, pending = self.engine.step(self.state, self.done, batch)
        self.position = self.data.get_state()
        following = self.read()  # while the device works
        measured: Measured = jax.device_get(pending)
        self.done += 1
        self.log(measured, time.monotonic() - began)
        if measured.skipped_in_a_row >= self.run.config.max_skipped:
            raise Diverged(self.explain_divergence(measured, batch))
        return following

    def log(self, measured: Measured, seconds: float) -> None:
        """Write and show what step `done` measured."""
        tokens = self.run.config.tokens_per_step
        loss, norm = float(measured.loss), float(measured.grad_norm)
        skipped = {"skipped": True} if measured.skipped_in_a_row else {}
        self.metrics.write(
            step=self.done,
            loss=loss,
            grad_norm=norm,
            learning_rate=float(measured.learning_rate),
            tokens=self.done * tokens,
            **skipped,
        )
        self.timings.write(step=self.done, seconds=seconds, tokens_per_second=tokens / seconds)
        compiled = self.done == self.first or self.done in self.switches
        self.report.step(self.done, loss, seconds, compiled=compiled)
        if skipped:
            self.report.say(f"step {self.done} skipped: loss {loss}, gradient norm {norm}")

    def at_boundary(self) -> None:
        """Evaluate, save and draw, where due."""
        config, last = self.run.config, self.done == self.run.config.steps
        self.checkpoints.check()
        if last or self.done % config.eval_every == 0:
            self.evaluate()
        if self.done % config.save_every == 0:
            self.save()
        if time.monotonic() - self.plotted > PLOT_EVERY_SECONDS and not last:
            write_plot(self.run)
            self.plotted = time.monotonic()

    def evaluate(self) -> None:
        """Write and show the loss on the held-out files."""
        loss, targets = self.engine.evaluate(self.state, self.done - 1)
        bits = bits_per_byte(loss, self.bytes_per_target)
        self.evaluations.write(step=self.done, loss=loss, bits_per_byte=bits, targets=targets)
        self.report.say(f"step {self.done}: held out {bits:.4f} bits/byte")

    def save(self) -> None:
        """Begin to save this boundary, unless it has been saved."""
        if self.saved == self.done:
            return
        self.checkpoints.save(
            self.state, self.done, run=self.run.describe(), position=self.position
        )
        self.saved = self.done

    def explain_divergence(self, measured: Measured, batch: Batch) -> str:
        """What to tell when the run stops for steps that went bad."""
        where = self.engine.diagnose(self.state, self.done - 1, batch)
        kept = max(checkpoint.steps(self.run.config.workdir / "checkpoints"), default=None)
        remedy = f"the last checkpoint is of step {kept}" if kept else "there is no checkpoint yet"
        return (
            f"stopped at step {self.done}: {measured.skipped_in_a_row} steps in a row had a loss "
            f"or gradient that is not finite; first bad: {where}; {remedy}; "
            "try a lower --learning-rate or a recipe with more layers in bf16"
        )


def _data_at(run: Run, position: dict | None) -> grain.DatasetIterator[Batch]:
    config = run.config
    data = training_batches(
        run.corpus.train, batch=config.batch, length=config.length, seed=config.seed
    )
    if position is not None:
        data.set_state(position)
    return data


def _held_out(run: Run) -> list[Batch]:
    config = run.config
    return held_out_batches(
        run.corpus.held_out, batch=config.batch, length=config.length, count=config.eval_batches
    )


def _announce(run: Run, state: TrainState, console: Console) -> None:
    """Say what is about to be trained, on what, and how."""
    quantized = sum(p.quantized for _, p in run.phases[0].table)
    lines = [
        f"{run.config.model}: {parameter_count(state):,} parameters, "
        f"{quantized} of {len(run.phases[0].table)} linear layers quantized by {run.recipe.name}",
        run.corpus.describe(),
    ]
    unused = len(jax.devices()) - run.mesh.size
    device = run.mesh.devices.flat[0].device_kind
    lines.append(f"on one {device} device" + (f"; {unused} more are idle" if unused else ""))
    lines.append("compiling the step: about a minute for a small model")
    for line in lines:
        _print(console, line)


def _print(console: Console, line: str) -> None:
    console.print(line, highlight=False, markup=False, soft_wrap=True)

"""The run: batches in, logs and checkpoints out, step by step, and nothing lost when cut off.

At the boundary of step s, in this order: its line in metrics.jsonl, a checkpoint if due, an
evaluation if due. Whatever an evaluation comes to, it costs no step, and one that is missing is
made up for when the run is continued. A checkpoint's position in the data is that after the batches
used, so what it restores is exactly what the uninterrupted run would have seen next.

The device works while the host reads ahead (`feed`); then the host waits for the loss, because a
step that went bad must stop the run, not be found out later.

Several processes run this same loop in step. What one of them alone may do, writing and showing,
is in the `journal` and behind `is_first`; what they must all do or none, they agree on first.
"""

from __future__ import annotations

import contextlib
import signal
import time

import grain
import jax
from rich.console import Console

from nvfp4_jax.training import checkpoint
from nvfp4_jax.training.announce import announce, plainly
from nvfp4_jax.training.board import check_installed
from nvfp4_jax.training.compilation import compilation_cache
from nvfp4_jax.training.config import TrainConfig
from nvfp4_jax.training.corpus import AnyCorpus
from nvfp4_jax.training.data import Batch, held_out_batches, training_batches
from nvfp4_jax.training.distributed import (
    agreed,
    from_first,
    is_first,
    leaving_on_error,
    several,
)
from nvfp4_jax.training.engine import Engine
from nvfp4_jax.training.errors import Diverged, UsageError
from nvfp4_jax.training.facts import facts
from nvfp4_jax.training.feed import Feed
from nvfp4_jax.training.interrupt import StopRequest, stop_requests
from nvfp4_jax.training.journal import Journal
from nvfp4_jax.training.metrics import read_lines
from nvfp4_jax.training.occupied import occupied
from nvfp4_jax.training.prepare import Run, prepare
from nvfp4_jax.training.proof import judge_of
from nvfp4_jax.training.resume import begin
from nvfp4_jax.training.sharding import rows_here
from nvfp4_jax.training.state import TrainState
from nvfp4_jax.training.step import Measured
from nvfp4_jax.training.summary import Summary, summarize
from nvfp4_jax.training.workdir import (
    COMPILED,
    EVALUATION,
    find_description,
    make_folder,
    remove_if_not_begun,
    write_description,
    write_parameters,
    write_plot,
)


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
        is saved at the boundary before it, if one process trains.
      StorageError: a disk or folder failed; when data could not be read, the run is saved first.
      Diverged: `config.max_skipped` steps in a row were skipped; names the first bad layer.
    """
    with leaving_on_error():
        return _train(config, console or console_here(), corpus)


def console_here() -> Console:
    """Standard output on the first process, nothing on the others."""
    return Console(quiet=not is_first())


def _train(config: TrainConfig, console: Console, corpus: AnyCorpus | None) -> Summary:
    began = time.monotonic()
    run = agreed(lambda: _checked(config, corpus), facts)
    with contextlib.ExitStack() as stack:
        agreed(lambda: _move_in(run, console, stack) if is_first() else None)
        loop, stopped_by = _in_its_folder(run, console)
        if not stopped_by:
            write_parameters(run, loop.state)
        if is_first():
            write_plot(run)
        seconds = time.monotonic() - began
        return summarize(config, loop.done, int(loop.state.skipped), seconds, stopped_by)


def _move_in(run: Run, console: Console, stack: contextlib.ExitStack) -> None:
    """Have the workdir, made if it is missing, to this run alone until `stack` is closed."""
    workdir = run.config.workdir
    is_new = not workdir.exists()
    make_folder(workdir)
    stack.enter_context(occupied(workdir, lambda line: plainly(console, line)))
    if is_new:
        stack.callback(remove_if_not_begun, workdir)


def _in_its_folder(run: Run, console: Console) -> tuple[_Loop, signal.Signals | None]:
    """Every step there is to take, all saved; and what ended them early, if anything did."""
    with contextlib.ExitStack() as stack:
        cache = run.config.compilation_cache or run.config.workdir / COMPILED
        stack.enter_context(compilation_cache(cache))
        state, position = begin(run, lambda line: plainly(console, line))
        announce(run, state, console)
        engine = Engine(run, _held_out(run), judge_of(run))
        _compile(engine, run, state, console)
        _describe(run)
        loop = _Loop(run, state, position, engine, console, stack)
        stack.enter_context(leaving_on_error())  # before anything waits to be closed
        stopped_by = _run_to_end(loop)
        loop.save()
    if loop.feed.failure:
        raise loop.feed.failure
    return loop, stopped_by


def _compile(engine: Engine, run: Run, state: TrainState, console: Console) -> None:
    """What the next step runs; nothing, where none is left."""
    done = int(state.step)
    if done < run.config.steps:
        plainly(console, "compiling the step: about a minute for a small model")
        engine.prepare(state, done)
        engine.prepare_evaluation(state, done)


def _checked(config: TrainConfig, corpus: AnyCorpus | None) -> Run:
    if config.distributed is not None and not jax.distributed.is_initialized():
        raise UsageError(
            f"distributed={config.distributed!r} is honoured by the command line; in Python, call "
            "train within nvfp4_jax.training.distributed.joined(...)"
        )
    if config.tensorboard:
        check_installed()
    return prepare(config, corpus)


def _describe(run: Run) -> None:
    """Write what the run is, once; every process must find it."""
    agreed(lambda: write_description(run) if is_first() else None)
    agreed(lambda: find_description(run))


def _run_to_end(loop: _Loop) -> signal.Signals | None:
    """What ended the run early, if anything did."""
    try:
        stopped_by = loop.run_to_end()
    except UsageError:  # a schedule's next step was refused, and the last boundary is whole
        if not several():  # the others may not have been refused, and take no part in a save
            loop.save()
        raise
    if loop.feed.failure and several() and not stopped_by:
        raise loop.feed.failure  # the others have not stopped, and take no part in a save
    return stopped_by


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
        config = run.config
        self.run, self.state, self.done = run, state, int(state.step)
        self.feed = Feed(_data_at(run, position), config.steps - self.done)
        self.saved = self.done if position else -1
        self.engine = engine
        self.journal = Journal(run, self.done, console, stack) if is_first() else None
        self.checkpoints = stack.enter_context(
            checkpoint.Checkpoints(config.workdir / "checkpoints", config.keep, config.keep_every)
        )
        self.stop: StopRequest = stack.enter_context(stop_requests())

    def run_to_end(self) -> signal.Signals | None:
        """Take every step that is left; returns the signal that ended it early, if one did."""
        if self.evaluation_is_missing():
            self.evaluate()
        while self.done < self.run.config.steps and not self.stop.is_due():
            batch = self.feed.take()
            if batch is None:
                break
            self.step(batch)
            self.at_boundary()
        return self.stop.signal if self.done < self.run.config.steps else None

    def step(self, batch: Batch) -> None:
        """One step on `batch`, and its line in the log."""
        began = time.monotonic()
        self.state, pending = self.engine.step(self.state, self.done, batch)
        self.feed.read_ahead()  # while the device works
        if self.feed.failure:
            self.stop.ask_all()
        measured: Measured = jax.device_get(pending)
        self.done += 1
        if self.journal:
            self.journal.step(self.done, measured, time.monotonic() - began)
        if measured.skipped_in_a_row >= self.run.config.max_skipped:
            raise Diverged(self.explain_divergence(measured, batch))

    def at_boundary(self) -> None:
        """Save, evaluate and draw, where due."""
        last = self.done == self.run.config.steps
        self.checkpoints.check()
        if last or self.done % self.run.config.save_every == 0:
            self.save()
        if self.evaluation_is_due():
            self.evaluate()
        if self.journal and not last:
            self.journal.draw()

    def evaluation_is_due(self) -> bool:
        """Whether this boundary has an evaluation."""
        config = self.run.config
        return self.done == config.steps or (self.done > 0 and self.done % config.eval_every == 0)

    def evaluation_is_missing(self) -> bool:
        """Whether the run was cut off between this boundary's checkpoint and its evaluation."""
        return self.evaluation_is_due() and from_first(self.is_not_evaluated)

    def is_not_evaluated(self) -> bool:
        """Whether the log has no evaluation of this boundary."""
        lines = read_lines(self.run.config.workdir / EVALUATION)
        return self.done not in {line["step"] for line in lines}

    def evaluate(self) -> None:
        """Write and show the loss on the held-out files."""
        loss, targets = self.engine.evaluate(self.state, self.done - 1)
        if self.journal:
            self.journal.evaluation(self.done, loss, targets)

    def save(self) -> None:
        """Begin to save this boundary, unless it has been saved."""
        if self.saved == self.done:
            return
        if self.journal:
            self.journal.to_disk()
        self.checkpoints.save(
            self.state, self.done, run=self.run.describe(), position=self.feed.position
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
        run.corpus.train,
        batch=config.batch,
        length=config.length,
        seed=config.seed,
        rows=rows_here(run.mesh, config.batch, config.microbatches),
    )
    if position is not None:
        data.set_state(position)
    return data


def _held_out(run: Run) -> list[Batch]:
    config = run.config
    return held_out_batches(
        run.corpus.held_out,
        batch=config.batch,
        length=config.length,
        count=config.eval_batches,
        rows=rows_here(run.mesh, config.batch, config.microbatches),
    )

"""The compiled side of a run: one executable for each table of precisions, made when needed.

A recipe's schedule never branches inside a step. At a switch the table of precisions is another
one, and with it the executable; since the table of any step follows from the step's number alone,
a run that is continued lands on the right side of every switch.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import jax

from nvfp4_jax.training.binding import Table
from nvfp4_jax.training.data import Batch
from nvfp4_jax.training.diagnose import first_bad_layer
from nvfp4_jax.training.prepare import Phase, Run
from nvfp4_jax.training.proof import batch_shapes
from nvfp4_jax.training.sharding import sharding
from nvfp4_jax.training.state import TrainState
from nvfp4_jax.training.step import Arrays, Measured, make_evaluation, make_step

Judge = Callable[[Phase, jax.stages.Compiled], None]


class Engine:
    """Steps and evaluations of one run on its mesh.

    Args:
      run: the run.
      held_out: the batches of an evaluation.
      judge: told every executable of the step before it runs, with the phase it is for; what it
        raises stops the run.
    """

    def __init__(self, run: Run, held_out: Sequence[Batch], judge: Judge | None = None) -> None:
        self._run = run
        self._judge = judge
        self._everywhere = sharding(run.mesh)
        self._key = jax.device_put(jax.random.key(run.config.seed), self._everywhere)
        rows = sharding(run.mesh, "batch", "length")
        self._held_out = [jax.device_put(dict(batch), rows) for batch in held_out]
        self._steps: dict[Table, jax.stages.Compiled] = {}
        self._compiled_evaluation = functools.cache(self._compile_evaluation)

    def step(self, state: TrainState, number: int, batch: Batch) -> tuple[TrainState, Measured]:
        """Step `number`, from 0. Returns before it is done; `state` is given up."""
        step = self.prepare(state, number)
        return step(state, self._place(batch), self._key)

    def prepare(self, state: TrainState, number: int) -> jax.stages.Compiled:
        """The executable of step `number`, from 0, compiled if it is the first of its kind."""
        table = self._run.phase(number).table
        if table not in self._steps:
            compiled = self._compile_step(table, state)
            if self._judge is not None:
                self._judge(self._run.phase(number), compiled)
            self._steps[table] = compiled
        return self._steps[table]

    def evaluate(self, state: TrainState, number: int) -> tuple[float, int]:
        """(mean loss in nats, targets) on the held-out batches, as of step `number`, from 0."""
        evaluate = self._compiled_evaluation(self._run.phase(number).evaluation)
        key = jax.random.fold_in(self._key, number)
        sums = [evaluate(state.parameters, batch, key) for batch in self._held_out]
        losses, targets = zip(*jax.device_get(sums), strict=True)
        count = sum(map(int, targets))
        return sum(map(float, losses)) / max(count, 1), count

    def diagnose(self, state: TrainState, number: int, batch: Batch) -> str:
        """Where step `number` went bad, given the parameters it left as they were."""
        key = jax.random.fold_in(self._key, number)
        table = self._run.phase(number).table
        return first_bad_layer(self._run.program, table, state.parameters, self._place(batch), key)

    def _place(self, batch: Batch) -> Arrays:
        """(batch, length) to (microbatches, rows, length) on the mesh."""
        count = self._run.config.microbatches
        layout = sharding(self._run.mesh, "microbatch", "batch", "length")
        parts = jax.tree.map(lambda a: a.reshape(count, -1, a.shape[-1]), dict(batch))
        return jax.device_put(parts, layout)

    def _compile_step(self, table: Table, state: TrainState) -> jax.stages.Compiled:
        run, config = self._run, self._run.config
        step = make_step(run.program, table, run.optimizer, run.schedule)
        batch = batch_shapes(run.mesh, config.microbatches, config.batch, config.length)
        jitted = jax.jit(step, donate_argnums=0, out_shardings=self._everywhere)
        return jitted.lower(state, batch, self._key).compile()

    def _compile_evaluation(self, table: Table) -> Callable:
        evaluate = make_evaluation(self._run.program, table)
        return jax.jit(evaluate, out_shardings=self._everywhere)

"""The compiled side of a run: one executable for each table of precisions, made when needed.

A recipe's schedule never branches inside a step. At a switch the table of precisions is another
one, and with it the executable; since the table of any step follows from the step's number alone,
a run that is continued lands on the right side of every switch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax.sharding import NamedSharding

from nvfp4_jax.training import exact
from nvfp4_jax.training.binding import Table
from nvfp4_jax.training.data import Batch
from nvfp4_jax.training.diagnose import first_bad_layer
from nvfp4_jax.training.distributed import first_alone
from nvfp4_jax.training.evaluation import make_evaluation
from nvfp4_jax.training.overlap import compiler_options
from nvfp4_jax.training.prepare import Phase, Run
from nvfp4_jax.training.proof import batch_shapes
from nvfp4_jax.training.sharding import batch_sharding, rows_here, sharding, state_shardings
from nvfp4_jax.training.state import Parameters, TrainState
from nvfp4_jax.training.step import (
    Arrays,
    Measured,
    make_gradients,
    make_step,
)
from nvfp4_jax.training.tuning import by_trial

Judge = Callable[[Phase, jax.stages.Compiled], None]
Options = dict[str, bool | int | str]


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
        self._options = exact.options(run.config.sum_parts)
        self._judge = judge
        self._everywhere = sharding(run.mesh)
        seed = run.config.seed
        self._key = jax.jit(lambda: jax.random.key(seed), out_shardings=self._everywhere)()
        self._rows = rows_here(run.mesh, run.config.batch, run.config.microbatches)
        self._held_out = [self._place(batch) for batch in held_out]
        self._steps: dict[Table, jax.stages.Compiled] = {}
        self._evaluations: dict[Table, jax.stages.Compiled] = {}

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

    def prepare_evaluation(self, state: TrainState, number: int) -> jax.stages.Compiled:
        """The executable that evaluates as of step `number`, compiled if it is new."""
        table = self._run.phase(number).evaluation
        if table not in self._evaluations:
            self._evaluations[table] = self._compile_evaluation(table, state)
        return self._evaluations[table]

    def evaluate(self, state: TrainState, number: int) -> tuple[float, int]:
        """(mean loss in nats, targets) on the held-out batches, as of step `number`, from 0."""
        evaluate = self.prepare_evaluation(state, number)
        key = jax.random.fold_in(self._key, number)
        sums = [evaluate(state.parameters, batch, key) for batch in self._held_out]
        losses, targets = zip(*jax.device_get(sums), strict=True)
        count = sum(map(int, targets))
        return sum(map(float, losses)) / max(count, 1), count

    def gradients(
        self, state: TrainState, number: int, batch: Batch
    ) -> tuple[jax.Array, Parameters]:
        """(mean loss, its gradients) of step `number`, as the step sees them; for comparisons."""
        run, key = self._run, jax.random.fold_in(self._key, number)
        of_batch = make_gradients(run.program, run.phase(number).table)
        find = jax.jit(of_batch, compiler_options=self._options)
        return find(state.parameters, self._place(batch), key)

    def diagnose(self, state: TrainState, number: int, batch: Batch) -> str:
        """Where step `number` went bad, given the parameters it left as they were."""
        key = jax.random.fold_in(self._key, number)
        table = self._run.phase(number).table
        return first_bad_layer(self._run.program, table, state.parameters, self._place(batch), key)

    def _place(self, batch: Batch) -> Arrays:
        """The rows of this host (`rows_here`, length) to (microbatches, rows, length)."""
        config, parts = self._run.config, self._run.config.microbatches
        shape = (parts, config.batch // parts, config.length)
        return _spread(batch, self._rows, shape, batch_sharding(self._run.mesh))

    def _compile_step(self, table: Table, state: TrainState) -> jax.stages.Compiled:
        run = self._run
        step = make_step(run.program, table, run.optimizer, run.schedule)
        layouts = state_shardings(run.mesh, state), self._everywhere
        jitted = jax.jit(step, donate_argnums=0, out_shardings=layouts)
        lowered = jitted.lower(state, self._batch_shapes(), self._key)
        return self._compile(lowered, self._options | compiler_options(run.mesh))

    def _compile_evaluation(self, table: Table, state: TrainState) -> jax.stages.Compiled:
        evaluate = make_evaluation(self._run.program, table)
        jitted = jax.jit(evaluate, out_shardings=self._everywhere)
        lowered = jitted.lower(state.parameters, self._batch_shapes(), self._key)
        return self._compile(lowered, exact.OPTIONS)

    def _compile(self, lowered: jax.stages.Lowered, options: Options) -> jax.stages.Compiled:
        def compile_() -> jax.stages.Compiled:
            return lowered.compile(compiler_options=options)

        return first_alone(compile_) if by_trial(self._run.mesh) else compile_()

    def _batch_shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        config = self._run.config
        return batch_shapes(self._run.mesh, config.microbatches, config.batch, config.length)


def _spread(
    batch: Batch, here: np.ndarray, shape: tuple[int, ...], layout: NamedSharding
) -> Arrays:
    """Arrays (..., rows, length) over all hosts, of whose rows this one has read `here`."""
    places = np.full(math.prod(shape[:-1]), -1)
    places[here] = np.arange(here.size)
    places = places.reshape(shape[:-1])

    def spread(rows: np.ndarray) -> jax.Array:
        def part(index: tuple[slice, ...] | None) -> np.ndarray:
            assert index is not None  # for arrays alone
            return rows[places[index[:-1]]][..., index[-1]]

        return jax.make_array_from_callback(shape, layout, part)

    return jax.tree.map(spread, dict(batch))

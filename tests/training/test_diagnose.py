"""Where a bad number began: parameter, forward or backward, each planted and found."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from nvfp4_jax.precision import LinearPrecision
from nvfp4_jax.training import binding
from nvfp4_jax.training.data import training_batches
from nvfp4_jax.training.diagnose import first_bad_layer
from nvfp4_jax.training.prepare import prepare
from nvfp4_jax.training.state import initial_state

from . import micro

pytestmark = pytest.mark.usefixtures("quick_to_compile")


@pytest.fixture(scope="module")
def parts(inputs, tmp_path_factory):
    run = prepare(micro.config(inputs, tmp_path_factory.mktemp("run")))
    low = dict(run.phases[0].table)["blocks_1/mlp/up"]
    plain = {path: LinearPrecision() for path, _ in run.phases[0].table}
    table = tuple((plain | {"blocks_1/mlp/up": low}).items())
    parameters = initial_state(run.program.config, run.optimizer, 0).parameters
    data = training_batches(run.corpus.train, batch=4, length=32, seed=0)
    batch = {k: jnp.asarray(v)[None] for k, v in next(data).items()}
    return run.program, table, parameters, batch


def search(parts, **planted) -> str:
    program, table, parameters, batch = parts
    return first_bad_layer(program, table, parameters | planted, batch, jax.random.key(0))


def test_a_parameter(parts):
    name = "blocks/0/mamba/norm/weight"
    found = search(parts, **{name: jnp.full_like(parts[2][name], jnp.nan)})
    assert found == "the parameter blocks_0/mamba/norm/weight is not finite itself"


def test_an_output_going_forward(parts):
    name = "blocks/1/mlp/up/kernel"
    found = search(parts, **{name: jnp.full_like(parts[2][name], 3e38)})
    assert found == "the output of blocks_1/mlp/up, going forward (microbatch 0)"


def test_a_gradient_going_back(parts, monkeypatch):
    """A product that is right going forward and gives NaN going back, in one layer."""
    make = binding.make_dot_general

    def planted(precision, key, weight_amax, **_options):
        multiply = make(precision, key=key, weight_amax=weight_amax)
        if not precision.quantized:
            return multiply

        def bad(x, w, *args, **options):
            return spoil(multiply(x, w, *args, **options))

        return bad

    @jax.custom_vjp
    def spoil(y):
        return y

    spoil.defvjp(lambda y: (y, None), lambda _, dy: (dy * jnp.nan,))
    monkeypatch.setattr(binding, "make_dot_general", planted)
    assert search(parts) == "the gradient of blocks_1/mlp/up/kernel, going back (microbatch 0)"


def test_nothing_bad(parts):
    program, table, parameters, batch = parts
    none = {name: array[:0] for name, array in batch.items()}
    found = first_bad_layer(program, table, parameters, none, jax.random.key(0))
    assert found.startswith("no layer: every gradient is finite")

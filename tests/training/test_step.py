"""The step: what it computes, what it skips, what it draws, and how often it is compiled."""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from nvfp4_jax import models
from nvfp4_jax.keys import layer_hash, layer_key, microbatch_key
from nvfp4_jax.training import step as steps
from nvfp4_jax.training.binding import block_labels, linears, make_bind
from nvfp4_jax.training.data import training_batches
from nvfp4_jax.training.engine import Engine
from nvfp4_jax.training.prepare import Run, prepare
from nvfp4_jax.training.state import abstract_model, assemble, flatten, initial_state

from . import micro

pytestmark = pytest.mark.usefixtures("quick_to_compile")


@pytest.fixture(scope="module")
def run(inputs, tmp_path_factory) -> Run:
    return prepare(micro.config(inputs, tmp_path_factory.mktemp("run")))


def batch_of(run: Run, microbatches: int = 1) -> dict:
    config = run.config
    rows = training_batches(
        run.corpus.train, batch=config.batch, length=config.length, seed=config.seed
    )
    return {
        k: jnp.asarray(v).reshape(microbatches, -1, config.length) for k, v in next(rows).items()
    }


def state_of(run: Run):
    return initial_state(run.program.config, run.optimizer, run.config.seed)


def test_keys_fold_seed_step_microbatch_and_path_in_this_order():
    key = microbatch_key(jax.random.key(7), jnp.int32(3), jnp.uint32(2))
    by_hand = jax.random.key(7)
    for number in (3, 2, 0xA3ABC20A):  # sha256("blocks_3/mlp/up") starts a3 ab c2 0a
        by_hand = jax.random.fold_in(by_hand, number)
    assert layer_hash("blocks_3/mlp/up") == 0xA3ABC20A
    assert (jax.random.key_data(layer_key(key, "blocks_3/mlp/up")) == raw(by_hand)).all()


@pytest.mark.parametrize("repeat", [None, 1])
def test_bind_gives_each_layer_its_key_scanned_or_not(run, repeat, monkeypatch):
    """The key that reaches a layer is that of its path, by static index or by traced repeat."""
    keys = []

    def remember(precision, key, **_options):
        keys.append(key)
        return jax.lax.dot_general

    monkeypatch.setattr("nvfp4_jax.training.binding.make_dot_general", remember)
    low = dict(run.phases[0].table)["blocks_1/mlp/up"]
    table = tuple((f"blocks_{i}/mlp/{name}", low) for i in (1, 3) for name in ("up", "down"))
    block = assemble(run.program.definition, state_of(run).parameters).blocks[1]
    key = jax.random.key(1)
    indices, index = ((3,), None) if repeat is None else ((1, 3), jnp.int32(repeat))
    make_bind(table, key)(block, indices, index)
    names = [name for name, _ in linears(block)]
    assert sorted(names) == ["mlp/down", "mlp/up"]
    for name, given in zip(names, keys, strict=True):
        assert (raw(given) == raw(layer_key(key, f"blocks_3/{name}"))).all()


def raw(key: jax.Array) -> jax.Array:
    return jax.random.key_data(key)


def test_flatten_and_assemble_undo_each_other(run):
    parameters = state_of(run).parameters
    assert "blocks/0/mamba/in_proj/kernel" in parameters
    again = flatten(assemble(run.program.definition, parameters))
    assert {k: v.shape for k, v in again.items()} == {k: v.shape for k, v in parameters.items()}
    assert all(again[name] is parameters[name] for name in parameters)


def test_state_and_gradients_are_fp32(run):
    state = state_of(run)
    table, key = run.phases[0].table, jax.random.key(0)
    _, grads = jax.eval_shape(
        lambda p, b: steps.gradients(run.program, table, p, b, key), state.parameters, batch_of(run)
    )
    for tree in (state.parameters, grads, state.optimizer):
        assert {leaf.dtype for leaf in jax.tree.leaves(tree)} <= {jnp.dtype("f4"), jnp.dtype("i4")}


@pytest.fixture(scope="module")
def bf16(run) -> tuple:
    """The table with every layer in bf16: deterministic, and quick to compile."""
    return tuple((path, type(precision)()) for path, precision in run.phases[0].table)


def test_microbatches_add_up_to_the_whole_batch(run, bf16):
    parameters, key = state_of(run).parameters, jax.random.key(0)
    whole, split = (
        jax.jit(lambda b: steps.gradients(run.program, bf16, parameters, b, key))(batch_of(run, n))
        for n in (1, 4)
    )
    assert whole[0] == pytest.approx(float(split[0]), rel=1e-5)
    for name, grad in whole[1].items():
        # activations are the same bf16 numbers either way; sums differ in order, and the
        # gradients of bf16 operands are rounded to 2^-9 after another scaling of the loss
        error = jnp.linalg.norm(grad - split[1][name]) / (jnp.linalg.norm(grad) + 1e-12)
        assert error < 1e-2, name


def test_the_loss_ignores_what_is_masked(run, bf16):
    """Changing tokens of another document, or masked targets, leaves the loss as it is."""
    batch = {k: v[0] for k, v in batch_of(run).items()}
    half = run.config.length // 2
    segments = jnp.zeros_like(batch["segment_ids"]).at[:, half:].set(1)
    mask = jnp.ones_like(batch["mask"]).at[:, half:].set(False)
    batch |= {"segment_ids": segments, "mask": mask}
    other = batch | {k: batch[k].at[:, half:].set(7) for k in ("tokens", "targets")}
    parameters = state_of(run).parameters
    loss = jax.jit(lambda b: steps.loss_sum(run.program, bf16, parameters, b, jax.random.key(0)))
    assert loss(batch) == loss(other)
    before = batch | {"segment_ids": jnp.zeros_like(segments), "mask": ~mask}
    after = other | {"segment_ids": jnp.zeros_like(segments), "mask": ~mask}
    assert loss(before) != loss(after)  # the same change is seen where it counts


@pytest.fixture(scope="module")
def compiled(run, bf16):
    step = steps.make_step(run.program, bf16, run.optimizer, run.schedule)
    return jax.jit(step)


def test_a_step_moves_parameters_and_counts(run, compiled):
    state, key = state_of(run), jax.random.key(0)
    after, measured = compiled(state, batch_of(run), key)
    assert [int(after.step), int(after.skipped)] == [1, 0]
    assert measured.loss == pytest.approx(np.log(256), rel=0.02)  # all bytes equally likely
    assert measured.learning_rate == pytest.approx(float(run.schedule(0)))
    moved = [bool((after.parameters[k] != w).any()) for k, w in state.parameters.items()]
    assert all(moved)


def test_a_bad_step_changes_nothing_but_the_counters(run, compiled):
    state, key = state_of(run), jax.random.key(0)
    bad = jnp.full_like(state.parameters["head/kernel"], jnp.inf)
    poisoned = state.parameters | {"head/kernel": bad}
    state = dataclasses.replace(state, parameters=poisoned)
    after, measured = compiled(state, batch_of(run), key)
    assert not jnp.isfinite(measured.loss)
    assert [int(after.step), int(after.skipped), int(after.skipped_in_a_row)] == [1, 1, 1]
    now, before = (after.parameters, after.optimizer), (poisoned, state.optimizer)
    same = jax.tree.map(lambda a, b: bool((a == b).all()), now, before)
    assert all(jax.tree.leaves(same))
    mended = dataclasses.replace(after, parameters=state_of(run).parameters)
    after, _ = compiled(mended, batch_of(run), key)
    assert [int(after.step), int(after.skipped), int(after.skipped_in_a_row)] == [2, 1, 0]


def test_steps_of_a_phase_share_one_executable(run, compiled):
    """No weakly typed initial value: the state that a step returns fits the step."""
    state, key = state_of(run), jax.random.key(0)
    before = compiled._cache_size()
    for _ in range(3):
        state, _ = compiled(state, batch_of(run), key)
    assert compiled._cache_size() - before <= 1
    assert not any(leaf.weak_type for leaf in jax.tree.leaves(state))


def test_the_bits_follow_seed_step_and_microbatch(run):
    """Stochastic rounding in one layer: the gradients differ when any of the three does."""
    table = run.phases[0].table
    parameters, batch = state_of(run).parameters, batch_of(run)
    grads = jax.jit(lambda key: steps.gradients(run.program, table, parameters, batch, key)[1])
    name = "blocks/1/mlp/up/kernel"
    keys = [
        jax.random.fold_in(jax.random.key(seed), step) for seed, step in ((0, 0), (0, 1), (1, 0))
    ]
    first, again, *others = (grads(key)[name] for key in (keys[0], *keys))
    assert (first == again).all()
    assert all((first != other).any() for other in others)
    assert (others[0] != others[1]).any()


def test_a_scan_over_repeats_draws_the_same_bits_and_keeps_the_parameters_apart(run, bf16):
    """Blocks in a loop: the parameter tree stays, and so do the numbers; another key shows."""
    config = dataclasses.replace(run.program.config, pattern="----")
    definition = nnx.graphdef(abstract_model(config, jnp.float32))
    low, high = dict(run.phases[0].table)["blocks_1/mlp/up"], dict(bf16)["head"]
    paths = [f"blocks_{i}/mlp/{name}" for i in range(4) for name in ("down", "up")]
    table = tuple((path, low if path.endswith("up") else high) for path in [*paths, "head"])
    labels = block_labels(table, config.blocks)
    assert models.find_repeats(labels) == (models.Repeat(0, 1, 4),)
    parameters = initial_state(config, run.optimizer, 0).parameters
    batch = batch_of(run)

    @partial(jax.jit, static_argnums=1)
    def gradients(key, scan):
        program = steps.Program(config, definition, scan=scan)
        return steps.gradients(program, table, parameters, batch, key)[1]

    here, elsewhere = jax.random.key(0), jax.random.key(1)
    looped, unrolled, other = (
        gradients(here, True),
        gradients(here, False),
        gradients(elsewhere, False),
    )
    assert looped.keys() == unrolled.keys() == parameters.keys()
    name = "blocks/2/mlp/up/kernel"
    # the same codes, up to a rare value next to a midpoint; other bits move some 10% of a gradient
    assert distance(looped[name], unrolled[name]) < 0.1 * distance(other[name], unrolled[name])
    assert distance(other[name], unrolled[name]) > 1e-2


def distance(a: jax.Array, b: jax.Array) -> float:
    return float(jnp.linalg.norm(a - b) / jnp.linalg.norm(b))


def test_phases_follow_the_schedule(run):
    assert [phase.start for phase in run.phases] == [0, micro.STEPS // 2]
    first, second = (dict(phase.table)["blocks_1/mlp/up"] for phase in run.phases)
    assert first.fprop.quantized
    assert not second.fprop.quantized
    assert second.wgrad == first.wgrad
    assert not any(p.quantized for phase in run.phases for _, p in phase.evaluation)
    assert [run.phase(s).start for s in (0, 5, 6, 11)] == [0, 0, 6, 6]


def test_the_engine_gives_every_microbatch_its_rows(run):
    run = dataclasses.replace(run, config=dataclasses.replace(run.config, microbatches=2))
    engine = Engine(run, [])
    batch = {"tokens": np.arange(4 * 32).reshape(4, 32)}
    placed = engine._place(batch)["tokens"]
    assert placed.shape == (2, 2, 32)
    assert (placed.reshape(4, 32) == batch["tokens"]).all()

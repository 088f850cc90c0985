"""Running the blocks: unrolled, rematerialized, or as a loop over repeats.

Parameters live per block, whatever runs them: a checkpoint is keyed by block, and changing a
recipe (and with it which blocks are alike) must not change the parameter tree. A loop needs them
stacked, so they are stacked here, inside the trace.

Precision enters by `bind`, called just before a block runs, which may set the `dot_general` of
its linear layers. It is given the block's index and, inside a loop, the number of the repeat as a
traced value, from which it can make the same random key as the unrolled form would have used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal, get_args

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array, lax

from nvfp4_jax.models import segments
from nvfp4_jax.models.block import Block
from nvfp4_jax.models.linear import LINEAR_INPUT
from nvfp4_jax.models.placement import place
from nvfp4_jax.models.repeats import Repeat

if TYPE_CHECKING:
    from nvfp4_jax.models.hybrid import Hybrid

Bind = Callable[[Block, tuple[int, ...], Array | None], None]
Remat = Literal["none", "linear_inputs", "block"]


def apply_blocks(
    model: Hybrid,
    x: Array,
    segment_ids: Array | None = None,
    *,
    bind: Bind | None = None,
    repeats: Sequence[Repeat] = (),
    remat: Remat = "none",
) -> Array:
    """Run every block of the model on x.

    Args:
      model: its `blocks` are run; the model itself is not changed.
      x: (batch, length, hidden).
      segment_ids: (batch, length), the document of each token in packed rows.
      bind: called as bind(block, indices, step) before a block runs. Unrolled: ((i,), None).
        In a loop: indices are this block's index in each repeat, step the traced repeat number.
      repeats: stretches to run as a loop, as from `find_repeats`.
      remat: what is kept for the backward pass: `none` everything, `linear_inputs` what each linear
        layer keeps of its input (packed, if its precision packs it), `block` the input of each
        block; the rest is computed again.

    Returns:
      (batch, length, hidden).

    Raises:
      ValueError: repeats that overlap, lie outside the model or hold unlike blocks; an unknown
        `remat`.
    """
    if remat not in get_args(Remat):
        raise ValueError(f"remat = {remat!r}: use one of {', '.join(map(repr, get_args(Remat)))}")
    if segment_ids is not None:
        segment_ids = segments.number(place(segment_ids, "batch", "whole"))
    blocks = list(model.blocks)
    _check(repeats, [block.letters for block in blocks])
    starts = {repeat.start: repeat for repeat in repeats}
    index = 0
    while index < len(blocks):
        if index in starts:
            repeat = starts[index]
            x = _loop(blocks, repeat, x, segment_ids, bind, remat)
            index = repeat.stop
        else:
            x = _run(blocks[index], x, segment_ids, bind, (index,), None, remat)
            index += 1
    return x


def _run(
    block: Block,
    x: Array,
    segment_ids: Array | None,
    bind: Bind | None,
    indices: tuple[int, ...],
    step: Array | None,
    remat: Remat,
) -> Array:
    """One block, on a copy: what `bind` sets does not outlive the call."""
    graph, state = nnx.split(block)

    def call(state: nnx.State, x: Array) -> Array:
        copy = nnx.merge(graph, state)
        if bind is not None:
            bind(copy, indices, step)
        return copy(x, segment_ids)

    return _kept_less(call, remat)(state, x)


def _kept_less(call: Callable, remat: Remat) -> Callable:
    """`call`, keeping for the backward pass what `remat` says."""
    if remat == "none":
        return call
    if remat == "block":
        return jax.checkpoint(call)
    policy = jax.checkpoint_policies.save_only_these_names(LINEAR_INPUT)
    return jax.checkpoint(call, policy=policy)


def _loop(
    blocks: list[Block],
    repeat: Repeat,
    x: Array,
    segment_ids: Array | None,
    bind: Bind | None,
    remat: Remat,
) -> Array:
    """One repeat as `lax.scan` over its groups, the parameters of each group stacked."""
    places = [
        tuple(range(i, repeat.stop, repeat.period))
        for i in range(repeat.start, repeat.start + repeat.period)
    ]
    split = [[nnx.split(blocks[i]) for i in indices] for indices in places]
    graphs = [parts[0][0] for parts in split]
    stacked = [
        jax.tree.map(lambda *leaves: jnp.stack(leaves), *(s for _, s in parts)) for parts in split
    ]

    def group(x: Array, inputs: tuple[Array, list]) -> tuple[Array, None]:
        step, states = inputs
        for graph, state, indices in zip(graphs, states, places, strict=True):
            x = _run(nnx.merge(graph, state), x, segment_ids, bind, indices, step, remat)
        return x, None

    return lax.scan(group, x, (jnp.arange(repeat.count), stacked))[0]


def _check(repeats: Sequence[Repeat], letters: list[str]) -> None:
    end = 0
    for repeat in sorted(repeats, key=lambda r: r.start):
        if (
            repeat.start < end
            or repeat.stop > len(letters)
            or repeat.count < 1
            or repeat.period < 1
        ):
            raise ValueError(f"{repeat} overlaps another or leaves the {len(letters)} blocks")
        end = repeat.stop
        groups = {
            tuple(letters[i : i + repeat.period])
            for i in range(repeat.start, repeat.stop, repeat.period)
        }
        if len(groups) > 1:
            raise ValueError(f"{repeat} holds groups of different mixers: {sorted(groups)}")

"""The state-space scan of Mamba-2 (SSD), in chunks.

The recurrence, for one head with state S (P, N), input x_t (P,), scalar step dt_t > 0 and decay
rate A < 0:

    S_t = exp(dt_t A) S_{t-1} + dt_t x_t B_t^T
    y_t = S_t C_t + D x_t

Written out, y_t is a weighted sum of all earlier inputs, like attention without a softmax:

    y_t = sum over s <= t of  (C_t . B_s) exp(l_t - l_s) dt_s x_s,     l = cumsum(dt A)

A token-by-token loop has no matrix product in it; the sum in full is quadratic in the length.
The chunked form takes the good half of each. The length is cut into chunks of Q tokens; then

1. within a chunk, the sum as matrix products (quadratic in Q only);
2. for each chunk, the state that its own tokens leave at its end;
3. a loop over chunks, not tokens, that carries the state across;
4. for each token, what the state at the start of its chunk still contributes.

What matters for cost: B and C belong to a *group* of heads, so C B^T is computed once a group;
the (Q, Q) matrices of step 1 are never kept for the backward pass but computed again; products
have operands in the dtype of x with FP32 accumulation, dt and l are FP32. What matters for being
right: l_t - l_s is masked *before* exp, since above the diagonal it is positive and overflows,
and 0 * inf in the backward pass would be NaN.

Packed documents (`seq_idx`): a token sees the tokens of its own document only, and the state is
dropped at a boundary. The initial state belongs to the document of the first token.

The functions below are that in plain XLA, which writes the (Q, Q) matrices to memory on their way:
64 KiB a token for 128 heads, many times what the scan reads and writes otherwise. On a GPU, fused
kernels (`ssd_triton`) keep them on chip; they do the same sums with the same precision.

Source: arXiv 2405.21060, section 6.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from nvfp4_jax.models import ssd_tiles
from nvfp4_jax.models.product import accumulator, contract
from nvfp4_jax.models.target import Implementation, choose, rounded


class Chunks(NamedTuple):
    """The inputs cut into chunks, each group's rows side by side, so that products are plain.

    b batch, c chunks, g groups, q tokens of a chunk, r heads of a group, p P, n N.
    """

    x: Array  # (b, c, g, q, r, p), times dt, in the dtype of the products
    log_decay: Array  # (b, c, g, r, q), FP32: l, the running sum of dt A within the chunk
    B: Array  # (b, c, g, q, n)
    C: Array  # (b, c, g, q, n)
    seq_idx: Array | None  # (b, c, 1, q), the same for all groups


def ssd(
    x: Array,
    dt: Array,
    A: Array,
    B: Array,
    C: Array,
    D: Array,
    *,
    chunk: int = 128,
    seq_idx: Array | None = None,
    initial_state: Array | None = None,
    implementation: Implementation | None = None,
) -> tuple[Array, Array]:
    """Run the recurrence above over a batch of rows.

    Args:
      x: (batch, length, H, P).
      dt: (batch, length, H), after softplus.
      A: (H,), negative.
      B, C: (batch, length, G, N); head h uses group h // (H / G).
      D: (H,).
      chunk: Q; changes the order of summation only. Any length will do: the last chunk is padded
        with tokens of dt = 0, which neither decay the state nor add to it. The kernels take the
        power of two that holds it, up to 128 (float32: 32).
      seq_idx: (batch, length), the document of each token, starting at any number; equal numbers
        next to each other are one document.
      initial_state: (batch, H, P, N), zeros when left out.
      implementation: `xla`, `triton`, or None for the faster one that can run: from Ampere to
        Blackwell the kernels for bfloat16, else XLA.

    Returns:
      y (batch, length, H, P) in the dtype of x, and the state after the last token
      (batch, H, P, N) in FP32 (float64 for float64 inputs).

    Raises:
      ValueError: `triton` where it cannot run, saying why.
    """
    wide = accumulator(x.dtype)
    if initial_state is None:
        batch, _, heads, head_dim = x.shape
        initial_state = jnp.zeros((batch, heads, head_dim, B.shape[3]), wide)
    dt, A, D, start = (part.astype(wide) for part in (dt, A, D, initial_state))
    if _chosen(implementation, x, B) == "triton":
        from nvfp4_jax.models import ssd_triton

        B, C = B.astype(x.dtype), C.astype(x.dtype)
        return ssd_triton.scan(x, dt, A, B, C, D, chunk=chunk, seq_idx=seq_idx, start=start)
    return _xla(x, dt, A, B, C, D, chunk=chunk, seq_idx=seq_idx, start=start)


def _chosen(implementation: Implementation | None, x: Array, B: Array) -> Implementation:
    if implementation is None and x.dtype == jnp.float32:
        return "xla"  # faster: exact FP32 products have no tensor cores, and cuBLAS is good at them
    obstacle = functools.partial(ssd_tiles.obstacle, x.dtype, x.shape[3], B.shape[3])
    return choose(implementation, obstacle, "state-space scan")


def _xla(
    x: Array,
    dt: Array,
    A: Array,
    B: Array,
    C: Array,
    D: Array,
    *,
    chunk: int,
    seq_idx: Array | None,
    start: Array,
) -> tuple[Array, Array]:
    batch, length, heads, head_dim = x.shape
    groups, size = B.shape[2:]
    state = start.reshape(batch, groups, -1, size)

    chunks = _cut(x, dt, A, B, C, seq_idx, min(chunk, length))
    kept = _kept(chunks)
    left, survival = _left_behind(_own(chunks)), _survival(_own(chunks), kept)
    states, final = _carry(left, survival, jnp.swapaxes(state, 2, 3))
    y = jax.checkpoint(_within)(_own(chunks)) + _from_start(_own(chunks), kept, states)
    y = jnp.moveaxis(y, 2, 3).reshape(batch, -1, heads, head_dim)[:, :length]
    y = y + D[None, None, :, None] * x.astype(dt.dtype)
    return y.astype(x.dtype), jnp.swapaxes(final, 2, 3).reshape(start.shape)


def _cut(
    x: Array, dt: Array, A: Array, B: Array, C: Array, seq_idx: Array | None, chunk: int
) -> Chunks:
    """Pad to whole chunks, then bring group before token."""
    batch, length, _, head_dim = x.shape
    groups = B.shape[2]
    count = -(-length // chunk)
    missing = count * chunk - length

    def cut(array: Array, rows: int, *inner: int, mode: str = "constant") -> Array:
        padding = [(0, 0), (0, missing)] + [(0, 0)] * (array.ndim - 2)
        padded = jnp.pad(array, padding, mode=mode) if missing else array
        return jnp.moveaxis(padded.reshape(batch, count, chunk, rows, *inner), 3, 2)

    steps = cut(dt, groups, -1)
    rates = jnp.moveaxis(rounded(steps), -1, -2) * A.reshape(1, 1, groups, -1, 1)
    # Each reader of the steps has its own, as in `_own`.
    wide = cut(x, groups, -1, head_dim).astype(dt.dtype)
    stepped = wide * rounded(jnp.broadcast_to(rounded(steps)[..., None], wide.shape))
    return Chunks(
        x=stepped.astype(x.dtype),
        # The barrier keeps XLA from fusing the sum into its readers, which would run it again for
        # each of their elements: Q times for every entry of a (Q, Q) matrix.
        log_decay=lax.optimization_barrier(jnp.cumsum(rates, axis=-1)),
        B=cut(B, groups, -1),
        C=cut(C, groups, -1),
        seq_idx=None if seq_idx is None else cut(seq_idx, 1, mode="edge"),
    )


def _own(chunks: Chunks) -> Chunks:
    """For one reader: the gradient of the decay is a sum of products, each rounded by itself."""
    return chunks._replace(log_decay=rounded(chunks.log_decay))


def _within(chunks: Chunks) -> Array:
    """Step 1, (b, c, g, q, r, p): what the tokens of a chunk give each other."""
    x, log_decay, B, C, seq_idx = chunks
    wide, chunk = log_decay.dtype, x.shape[3]
    scores = contract("bcgqn,bcgkn->bcgqk", C, B, x.dtype, wide)
    allowed = jnp.tril(jnp.ones((1, 1, 1, 1, chunk, chunk), bool))
    if seq_idx is not None:
        allowed = allowed & (seq_idx[..., :, None] == seq_idx[..., None, :])[:, :, :, None]
    gap = log_decay[..., :, None] - log_decay[..., None, :]
    decay = jnp.exp(jnp.where(allowed, gap, -jnp.inf))
    weights = scores[:, :, :, None] * decay
    y = contract("bcgrqk,bcgrkp->bcgrqp", weights, jnp.moveaxis(x, 4, 3), x.dtype, wide)
    return jnp.moveaxis(y, 3, 4)


def _left_behind(chunks: Chunks) -> Array:
    """Step 2, (c, b, g, n, r p): the state that each chunk's own tokens leave at its end."""
    x, log_decay, B, _, seq_idx = chunks
    weight = jnp.exp(log_decay[..., -1:] - log_decay)
    if seq_idx is not None:
        weight = jnp.where((seq_idx == seq_idx[..., -1:])[:, :, :, None], weight, 0)
    weighted = x.astype(weight.dtype) * jnp.moveaxis(weight, -1, -2)[..., None]
    rows = weighted.reshape(*x.shape[:4], -1)
    return contract("bcgqn,bcgqm->cbgnm", B, rows, x.dtype, weight.dtype)


def _kept(chunks: Chunks) -> Array | None:
    """(b, c, 1, q): whether a token belongs to the document of the state its chunk starts with."""
    seq_idx = chunks.seq_idx
    if seq_idx is None:
        return None
    before = jnp.concatenate([seq_idx[:, :1, :, :1], seq_idx[:, :-1, :, -1:]], axis=1)
    return seq_idx == before


def _survival(chunks: Chunks, kept: Array | None) -> Array:
    """(c, b, g, 1, r p): the factor by which a chunk shrinks the state it starts with."""
    factor = jnp.exp(chunks.log_decay[..., -1])
    if kept is not None:
        factor = jnp.where(kept[..., -1:], factor, 0)
    each_row = jnp.repeat(factor, chunks.x.shape[-1], axis=-1)
    return jnp.moveaxis(each_row, 1, 0)[..., None, :]


def _carry(left: Array, survival: Array, start: Array) -> tuple[Array, Array]:
    """Step 3: the state each chunk starts with, (c, b, g, n, r p), and the one at the end."""

    def step(state: Array, chunk: tuple[Array, Array]) -> tuple[Array, Array]:
        added, factor = chunk
        return state * factor + added, state

    final, states = lax.scan(step, start, (left, survival))
    return states, final


def _from_start(chunks: Chunks, kept: Array | None, states: Array) -> Array:
    """Step 4, (b, c, g, q, r, p): what the state at the start of a chunk gives its tokens."""
    factor = jnp.exp(chunks.log_decay)
    if kept is not None:
        factor = jnp.where(kept[:, :, :, None], factor, 0)
    x = chunks.x
    read = contract("bcgqn,cbgnm->bcgqm", chunks.C, states, x.dtype, factor.dtype)
    return read.reshape(x.shape) * jnp.moveaxis(factor, -1, -2)[..., None]

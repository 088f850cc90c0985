"""A Blackwell GPU as far as the GEMM's body can see it, in Python, with bad luck.

Mosaic's interpreter has no block-scaled product, so the body runs here on stand-ins for its
primitives: every warp is a thread of its own, one runs at a time, and a random choice says which.
Copies by TMA arrive in any order and as late as they may; products, copies to tensor memory and
commits run in the order of their issue, whenever that is; stores read their buffer as late as they
may. What is being loaded is poisoned with NaN meanwhile. Barriers count arrivals and bytes and are
awaited by parity, as mbarrier is (PTX ISA, "mbarrier"), so a phase missed or mistaken shows.

Scales lie in tensor memory as the PTX ISA draws it for `scale_vec::4X` (tcgen05.mma, "scale factor
A / B layout"): that of row r and block j is byte j of lane r % 32 and column r // 32.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from functools import cache
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas import mosaic_gpu as plgpu

from nvfp4_jax.kernels import blackwell_gemm_body as body
from nvfp4_jax.kernels.blackwell_gemm_tiling import (
    BLOCK,
    INSTRUCTION_K,
    Problem,
    Tiling,
)
from tests.kernels.blackwell_memory import HERE, At, Barrier, Global, Shared


class Deadlock(AssertionError):
    """Every thread waits, and nothing is under way that could wake one."""


class Cluster:
    """The primitives that the body calls, for the CTAs of one cluster."""

    CopyPartition = plgpu.CopyPartition

    def __init__(self, problem: Problem, tiling: Tiling, index: int, count: int, seed: int):
        self.problem, self.tiling, self.index, self.count = problem, tiling, index, count
        self.forgotten: str | None = None
        self.random = np.random.default_rng((seed, index))
        self.baton, self.threads = threading.Semaphore(0), []
        self.loads: list[Callable] = []
        self.tensor: deque[Callable] = deque()
        self.stores = [[] for _ in range(tiling.ctas)]
        self.weights = self.random.choice([0.02, 1.0], size=3 + 5 * tiling.ctas)

    # Running

    def run(self, arguments: list[Global], out: Global):
        scratch = {
            name: self._allocated(name, spec)
            for name, spec in body._scratch(self.problem, self.tiling).items()
        }
        roles = [(0, warp) for warp in range(4)] + [(1, 0)]
        for cta in range(self.tiling.ctas):
            for warpgroup, warp in roles:
                self._start(cta, warpgroup, warp, arguments, out, scratch)
        while any(thread.alive for thread in self.threads):
            self._advance()
        assert not any(thread.error for thread in self.threads)
        self.drain()

    def drain(self):
        """What is still under way when the last thread has ended: stores, and nothing else."""
        assert not self.loads
        assert not self.tensor
        for queue in self.stores:
            for store in queue:
                store.run()

    def _allocated(self, name, spec):
        ctas = self.tiling.ctas
        if isinstance(spec, plgpu.Barrier | plgpu.ClusterBarrier):
            arrivals = spec.num_arrivals * (ctas if isinstance(spec, plgpu.ClusterBarrier) else 1)
            (number,) = spec.num_barriers
            barriers = [Barrier(name, arrivals, ctas) for _ in range(number)]
            return SimpleNamespace(at=At(barriers.__getitem__))
        shape = getattr(spec, "shape", None) or spec.ref.shape
        if name in ("a_scale_tmem", "b_scale_tmem"):  # 32 lanes, columns, 4 bytes
            shape = (32, shape[0] // 32 * (shape[1] // 4), 4)
        return Shared([np.full(shape, np.nan, np.float32) for _ in range(ctas)])

    def _start(self, cta, warpgroup, warp, arguments, out, scratch):
        thread = SimpleNamespace(turn=threading.Semaphore(0), ready=None, alive=True, error=None)

        def work():
            vars(HERE).update(
                cta=cta, warpgroup=warpgroup, warp=warp, phases={}, thread=thread, cluster=self
            )
            thread.turn.acquire()
            try:
                scalars = len(arguments) - 4
                body._body(self.problem, self.tiling, scalars, *arguments, out, **scratch)
            except BaseException as error:  # handed to the thread that asked for the run
                thread.error = error
            thread.alive = False
            self.baton.release()

        threading.Thread(target=work, daemon=True).start()
        self.threads.append(thread)

    def _advance(self):
        """Let one thread go on, or one asynchronous operation happen."""
        choices = [
            (weight, thread)
            for weight, thread in zip(self.weights[3:], self.threads, strict=True)
            if thread.alive and (thread.ready is None or thread.ready())
        ]
        queues = (self.loads, self.tensor, [s for q in self.stores for s in q if not s.done])
        choices += [(w, q) for w, q in zip(self.weights, queues, strict=False) if q]
        if not choices:
            raise Deadlock(f"cluster {self.index}: every thread waits")
        odds = np.array([weight for weight, _ in choices])
        chosen = choices[self.random.choice(len(choices), p=odds / odds.sum())][1]
        if chosen is self.tensor:
            self.tensor.popleft()()
        elif chosen is self.loads:
            self.loads.pop(self.random.integers(len(self.loads)))()
        elif isinstance(chosen, list):
            chosen[0].run()
        else:
            chosen.turn.release()
            self.baton.acquire()
            if chosen.error:
                raise chosen.error

    def _pause(self, ready=None):
        """Hand the baton back until this thread is chosen again."""
        thread = HERE.thread
        thread.ready = ready
        self.baton.release()
        thread.turn.acquire()

    # Loops

    def nd_loop(self, grid, *, collective_axes, init_carry):
        assert collective_axes == "grid"

        def run(visit):
            carry = init_carry
            for index in range(self.index, grid[0], self.count):
                carry = visit(SimpleNamespace(index=(index,)), carry)
            return carry

        return run

    def planar_snake(self, index, shape, minor, width):
        return snake(shape, minor, width)[index]

    def warp_map(self, function):
        function(HERE.warp)

    # Barriers

    def barrier_wait(self, barrier):
        state = barrier.states[HERE.cta]
        parity = HERE.phases.get(barrier, 0)
        if barrier.name == self.forgotten:
            return
        self._pause(lambda: state.phase % 2 != parity)
        HERE.phases[barrier] = 1 - parity

    def barrier_arrive(self, barrier):
        barrier.update(0 if self.tiling.ctas == 2 else HERE.cta, arrivals=1)
        self._pause()

    # Copies by TMA

    def copy_gmem_to_smem(self, source, target, barrier, collective_axes=None, leader_tracked=None):
        cta, both = HERE.cta, leader_tracked is plgpu.CopyPartition.REPLICATED
        values = source.read()
        if leader_tracked is not None and not both:
            values = np.split(values, self.tiling.ctas, axis=leader_tracked.axis)[cta]
        whole = target.local.size
        if leader_tracked is None or cta == 0:
            barrier.update(cta, bytes=whole * (1 if leader_tracked is None else 2))
            barrier.update(cta, arrivals=1)
        share, targets = self._shares(target, cta, both)
        for destination in targets:
            destination[share] = np.nan

        def arrive():
            for destination in targets:
                destination[share] = values.reshape(destination.shape)[share]
                barrier.update(0 if leader_tracked else cta, bytes=-destination[share].size)

        self.loads.append(arrive)
        self._pause()

    def _shares(self, target, cta, both):
        """Which part of whose memory this CTA fills."""
        if not both:
            return (), [target.arrays[cta]]
        axis = next(axis for axis, size in enumerate(target.shape) if size % 2 == 0)
        half = target.shape[axis] // 2
        share = (*(slice(None),) * axis, slice(cta * half, (cta + 1) * half))
        return share, target.arrays

    def copy_smem_to_gmem(self, source, target):
        store = SimpleNamespace(done=False)

        def run():
            if not store.done:
                target.write(buffer)
                store.done = True

        buffer, store.run = source.local, run
        self.stores[HERE.cta].append(store)
        self._pause()

    def wait_smem_to_gmem(self, allowed, wait_read_only):
        queue = self.stores[HERE.cta]
        awaited = queue[: len(queue) - allowed] if self.forgotten != "staging" else []
        self._pause(lambda: all(store.done for store in awaited))

    def commit_smem(self):
        self._pause()

    # Tensor core and tensor memory

    def async_copy_scales_to_tmem(self, source, target, collective_axis):
        assert (collective_axis == "cta") == (self.tiling.ctas == 2)

        def run():
            for tiles, columns in zip(source.arrays, target.arrays, strict=True):
                m_tiles, k_tiles = tiles.shape[:2]
                for m, k in np.ndindex(m_tiles, k_tiles):
                    first = 4 * (m_tiles * k + m)
                    columns[:, first : first + 4] = tiles[m, k].reshape(32, 4, 4)

        self.tensor.append(run)
        self._pause()

    def tcgen05_mma(self, sums, a, b, barrier, *, a_scale, b_scale, accumulate, collective_axis):
        def run():
            b_rows = np.concatenate(b.arrays)
            for cta in range(self.tiling.ctas):
                a_values = a.arrays[cta] * spread(a_scale.arrays[cta], a.shape)
                b_values = b_rows * spread(b_scale.arrays[cta], b_rows.shape)
                before = sums.arrays[cta] if accumulate else 0
                sums.arrays[cta][...] = before + a_values @ b_values.T

        self.tensor.append(run)
        self.tcgen05_commit_arrive(barrier, collective_axis)

    def tcgen05_commit_arrive(self, barrier, collective_axis):
        def run():
            for cta in range(self.tiling.ctas):
                barrier.update(cta, arrivals=1)

        self.tensor.append(run)
        self._pause()

    def async_load_tmem(self, sums):
        return sums.local.copy()

    def wait_load_tmem(self):
        self._pause()


def spread(scales: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The scale of each element of (rows, k), read from tensor memory as the tensor core does."""
    rows, k = shape
    row, block = np.indices((rows, k // BLOCK))
    per_step = scales.shape[1] // (k // INSTRUCTION_K)
    found = scales[row % 32, block // 4 * per_step + row // 32, block % 4]
    return np.repeat(found, BLOCK, axis=1)


@cache
def snake(shape: tuple[int, int], minor: int, width: int) -> list[tuple[int, int]]:
    """The order of tiles, by Pallas' own function."""
    order = jax.vmap(lambda index: plgpu.planar_snake(index, shape, minor, width))
    rows, columns = order(jnp.arange(shape[0] * shape[1]))
    return list(zip(rows.tolist(), columns.tolist(), strict=True))


def run(
    monkeypatch,
    problem: Problem,
    tiling: Tiling,
    arrays: tuple[np.ndarray, ...],
    scalars: tuple[np.float32, ...],
    clusters: int,
    seed: int,
    forgotten: str | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The body on all clusters, one after the other.

    Args:
      arrays: (a, b, a_scale, b_scale) as the kernel takes them, but float32.
      clusters: of the grid; each computes several tiles.
      seed: of what happens when.
      forgotten: a barrier on which nothing waits, or `staging`, whose stores nothing waits for.

    Returns:
      The output, and how often each element was written.
    """
    out = np.full((problem.m, problem.n), np.nan, problem.dtype)
    writes = np.zeros(out.shape, int)
    arguments = [Global(array) for array in (*arrays, *(np.reshape(s, 1) for s in scalars))]
    made = [Cluster(problem, tiling, index, clusters, seed) for index in range(clusters)]
    with monkeypatch.context() as patched:
        _stand_in(patched)
        for cluster in made:
            cluster.forgotten = forgotten
            cluster.run(arguments, Global(out, writes=writes))
    return out, writes


def _stand_in(patched):
    def when(condition):
        return lambda function: function() if condition else None

    def loop(start, stop):
        return lambda function: [function(i) for i in range(start, stop)] and None

    def axis_index(name):
        return getattr(HERE, name)

    def window(start, size):
        return slice(start, start + size)

    class Primitives:
        """Those of the cluster to which the calling thread belongs; Pallas' own elsewhere."""

        def __getattr__(self, name):
            return getattr(getattr(HERE, "cluster", plgpu), name)

    class Numbers:
        int32, maximum, logical_and = int, max, staticmethod(lambda a, b: a and b)

        def __getattr__(self, name):
            return getattr(jnp, name)

    patched.setattr(body, "plgpu", Primitives())
    patched.setattr(body, "jnp", Numbers())
    patched.setattr(body, "pl", SimpleNamespace(when=when, loop=loop, ds=window))
    patched.setattr(body, "lax", SimpleNamespace(axis_index=axis_index, rem=lambda a, b: a % b))

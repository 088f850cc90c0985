"""Compile a function for GPUs that are not here, on any machine.

XLA's GPU compiler needs no GPU: told which one to compile for, and how many, it gives the program
that would run there. Memory, collectives and kernels of a cluster nobody here owns can be read in
it, and a laptop's tests see what the GPU compiler makes of the arithmetic.

    mesh = mesh_of("b200", {"data": 128, "fsdp": 8})
    compiled = compile_for(mesh, step, state, batch)      # jax.ShapeDtypeStruct for every array
    compiled.as_text(); memory_of(compiled).total_bytes

What is compiled cannot be run. The compiler comes with JAX's CUDA plugin, which needs no driver
and no CUDA toolkit: `nvfp4_jax[compile]` installs it.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from nvfp4_jax.gpus import Gpu, find_gpu

_OF_MOSAIC = "Pass pipeline failed"  # all that jaxlib says when a kernel does not assemble
_PLUGIN = ("jax_plugins.xla_cuda13", "jax_cuda13_plugin")  # XLA for CUDA; Mosaic's compiler


def mesh_of(gpu: Gpu | str, axes: Mapping[str, int] | None = None) -> Mesh:
    """A mesh of abstract GPUs, in the order of hosts: the last axis varies fastest.

    Args:
      gpu: which, by `gpus.find_gpu`'s names.
      axes: sizes by name, `{"data": 128, "fsdp": 8}`; one device on the axis `data` if left out.

    Raises:
      ValueError: no such GPU, a size below 1, or the compiler for CUDA is not installed.
    """
    gpu = find_gpu(gpu) if isinstance(gpu, str) else gpu
    axes = dict(axes or {"data": 1})
    if wrong := [f"{name}={size}" for name, size in axes.items() if size < 1]:
        raise ValueError(f"mesh axis {wrong[0]}: give it at least one device")
    sizes = tuple(axes.values())
    devices = np.asarray(_devices(gpu, math.prod(sizes))).reshape(sizes)
    return Mesh(devices, tuple(axes), axis_types=(AxisType.Auto,) * len(sizes))


def compile_for(
    mesh: Mesh, function: Callable[..., Any], *arguments: Any, **options: Any
) -> jax.stages.Compiled:
    """The executable of `function` for the devices of `mesh`.

    Kernels are chosen as they are on those GPUs, since the mesh is in force while `function` is
    traced.

    Args:
      mesh: from `mesh_of`.
      function: any function that can be jitted.
      *arguments: pytrees of `jax.ShapeDtypeStruct` (arrays do, for their shapes). One that has a
        sharding keeps it; one that has none is on every device.
      **options: of `jax.jit`: `donate_argnums`, `out_shardings`.

    Raises:
      RuntimeError: a Mosaic kernel does not compile, because this process has compiled one for
        another kind of GPU before (jaxlib 0.11.2), or for a fault of its own; the cause is chained.
    """
    placed = jax.tree.map(lambda leaf: _placed(mesh, leaf), arguments)
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        lowered = jax.jit(function, **options).lower(*placed)
        try:
            return lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            if _OF_MOSAIC not in str(error):
                raise
            raise RuntimeError(
                f"a Mosaic kernel does not compile for {mesh.devices.flat[0].device_kind}. jaxlib "
                "settles on the first GPU for which a process compiles one: compile for another "
                "kind in a process of its own"
            ) from error


@dataclass(frozen=True)
class Memory:
    """Bytes on each device, as the compiler planned them.

    Attributes:
      arguments, outputs: of the function; `aliased` of them are in the same place.
      temporaries: everything in between, at its peak.
    """

    arguments: int
    outputs: int
    aliased: int
    temporaries: int

    @property
    def total_bytes(self) -> int:
        """What a call of the function needs at its peak."""
        return self.arguments + self.outputs - self.aliased + self.temporaries


def memory_of(compiled: jax.stages.Compiled) -> Memory:
    """The memory of an executable, on each of its devices."""
    told = compiled.memory_analysis()
    if told is None:
        raise ValueError("this backend does not tell how much memory its programs need")
    return Memory(
        told.argument_size_in_bytes,
        told.output_size_in_bytes,
        told.alias_size_in_bytes,
        told.temp_size_in_bytes,
    )


@cache
def _devices(gpu: Gpu, count: int) -> tuple[Any, ...]:
    if missing := [name for name in _PLUGIN if not _is_installed(name)]:
        raise ValueError(
            f"compiling for {gpu.kind} needs JAX's CUDA plugin, and there is no {missing[0]}; "
            "install nvfp4_jax[compile], in a checkout -e '.[compile]' (no GPU, driver or CUDA "
            "toolkit is needed)"
        )
    hosts, rest = divmod(count, gpu.per_host)
    shape = (1, hosts, gpu.per_host) if hosts and not rest else (1, 1, count)
    describe = partial(
        topologies.get_topology_desc,
        f"{gpu.name}-{count}",
        platform="cuda",
        target_config=gpu.target_config,
        topology="x".join(map(str, shape)),
    )
    try:
        return tuple(describe().devices)
    except NotImplementedError:  # JAX gave its plugin up for want of cuDNN, needed to run alone
        _register_the_plugin()
        return tuple(describe().devices)


def _register_the_plugin() -> None:
    """As JAX does at its start, but for a machine that compiles and does not run."""
    platforms = jax.config.jax_platforms
    jax.config.update("jax_platforms", "cpu")
    try:
        importlib.import_module(_PLUGIN[0]).initialize()
    finally:
        jax.config.update("jax_platforms", platforms)


def _is_installed(name: str) -> bool:
    parent, _, _ = name.rpartition(".")
    if parent and importlib.util.find_spec(parent) is None:
        return False
    return importlib.util.find_spec(name) is not None


def _placed(mesh: Mesh, leaf: Any) -> jax.ShapeDtypeStruct:
    given = getattr(leaf, "sharding", None) if isinstance(leaf, jax.ShapeDtypeStruct) else None
    sharding = given or NamedSharding(mesh, PartitionSpec())
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

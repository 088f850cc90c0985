"""Compiling for GPUs that are not here: which, how many, and what the result tells."""

from __future__ import annotations

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from nvfp4_jax import compile_for as module
from nvfp4_jax.compile_for import compile_for, memory_of, mesh_of
from nvfp4_jax.gpus import GPUS, find_gpu
from nvfp4_jax.kernels import capability


@pytest.mark.parametrize("name", GPUS)
def test_every_gpu_compiles_and_kernels_are_chosen_for_it(name):
    seen = []

    def f(x):
        seen.append(capability.capability())
        return x @ x

    compiled = compile_for(mesh_of(name), f, jax.ShapeDtypeStruct((64, 64), jnp.bfloat16))
    assert seen == [GPUS[name].capability]
    assert memory_of(compiled).arguments == 2 * 64 * 64


def test_a_mesh_of_several_axes_and_hosts():
    mesh = mesh_of("b200", {"data": 2, "fsdp": 8})
    assert dict(mesh.shape) == {"data": 2, "fsdp": 8}
    hosts = [{device.process_index for device in row} for row in mesh.devices]
    assert hosts == [{0}, {1}], "the last axis stays within a host"


def test_collectives_and_memory_of_a_cluster_can_be_read():
    mesh = mesh_of("h100", {"data": 128, "fsdp": 8})

    def sharded(shape, *spec):
        layout = NamedSharding(mesh, PartitionSpec(*spec))
        return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=layout)

    arguments = sharded((4096, 512), "data"), sharded((512, 1024), "fsdp")
    compiled = compile_for(mesh, lambda x, w: jnp.sum(x @ w), *arguments)
    text = compiled.as_text()
    assert text is not None
    assert "all-reduce" in text
    memory = memory_of(compiled)
    assert memory.arguments == 4 * (4096 // 128 * 512 + 512 // 8 * 1024)
    assert memory.total_bytes >= memory.arguments


def test_an_unknown_gpu_and_an_empty_axis():
    with pytest.raises(ValueError, match=r"no GPU is called 'b201': did you mean 'b200'"):
        find_gpu("b201")
    with pytest.raises(ValueError, match=r"mesh axis fsdp=0: give it at least one device"):
        mesh_of("b200", {"data": 8, "fsdp": 0})


def test_without_the_plugin_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(module, "_is_installed", lambda _: False)
    module._devices.cache_clear()
    with pytest.raises(ValueError, match=r"install nvfp4_jax\[compile\]"):
        mesh_of("b200")
    module._devices.cache_clear()


def test_where_jax_gives_its_plugin_up():
    """Without cuDNN or a driver, as on a laptop where nobody says JAX_PLATFORMS=cpu."""
    code = "from nvfp4_jax.compile_for import mesh_of; print(mesh_of('b200', {'data': 2}).size)"
    environment = {name: value for name, value in os.environ.items() if name != "JAX_PLATFORMS"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False
    )
    assert (done.returncode, done.stdout) == (0, "2\n"), done.stderr

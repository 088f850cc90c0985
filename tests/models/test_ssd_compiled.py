"""The fused scan compiled for GPUs that are not here: what each kernel takes, and how it is split.

Compiled with Triton's own assembler for an H100, an A100 and an L40S; and a jitted scan for four
H100s by XLA, whose program shows what each device runs.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import triton
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from nvfp4_jax.models import ssd_fused, ssd_tiles
from nvfp4_jax.models.ssd import ssd
from tests.gpu_compile import H100

PTXAS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas"
SHARED = {
    100: 227 * 1024,
    90: 227 * 1024,
    80: 163 * 1024,
    89: 99 * 1024,
}  # bytes a program may have
TYPES = {"bfloat16": "*bf16", "float32": "*fp32", "int32": "*i32"}
NEMOTRON = ssd_tiles.Sizes(batch=1, length=8192, heads=128, groups=8, head_dim=80, state=128)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Triton compiles into its cache, which jax-triton, wherever it is imported, switches off."""
    monkeypatch.setattr(triton.knobs.cache, "dir", str(tmp_path))


def launches(sizes, dtype, capability: int, packed: bool) -> list:
    """(kernel, dtypes of its arguments, launch, constants) of a forward and a backward pass."""
    found = []

    def call(kernel, arguments, results, grid, launch, constants):
        found.append((kernel, [a.dtype.name for a in (*arguments, *results)], launch, constants))
        return [jnp.zeros(r.shape, r.dtype) for r in results]

    batch, length, heads, groups, head_dim, state = sizes
    tiles = ssd_tiles.tiles(dtype, capability)
    plan = ssd_fused.Plan(call, sizes, tiles, tiles.chunk, packed)
    x = jnp.zeros((batch, length, heads, head_dim), dtype)
    dt, A = jnp.zeros((batch, length, heads)), jnp.zeros(heads)
    B = jnp.zeros((batch, length, groups, state), dtype)
    seq_idx = jnp.zeros((batch, length), jnp.int32)
    start = jnp.zeros((batch, heads, head_dim, state))

    def both(x, dt, A, B, seq_idx, start):
        _, _, decays, states = ssd_fused.forward(plan, x, dt, A, B, B, A, seq_idx, start)
        return ssd_fused.backward(plan, x, A, B, B, A, seq_idx, decays, states, x, start)

    jax.eval_shape(both, x, dt, A, B, seq_idx, start)
    return found


def compiled(kernel, dtypes, launch, constants, capability: int):
    arrays = kernel.arg_names[: len(dtypes)]
    signature = dict.fromkeys(kernel.arg_names, "constexpr")
    signature |= {name: TYPES[dtype] for name, dtype in zip(arrays, dtypes, strict=True)}
    aligned = {(i,): [["tt.divisibility", 16]] for i in range(len(arrays))}
    source = ASTSource(kernel, signature, constexprs=constants, attrs=aligned)
    options = {"num_warps": launch.warps, "num_stages": launch.stages}
    target = GPUTarget("cuda", capability, 32)
    return triton.compile(source, target=target, options=options)


def spilled(program, capability: int, tmp_path) -> int:
    """Bytes of registers that ptxas keeps in memory."""
    path = tmp_path / "kernel.ptx"
    path.write_text(program.asm["ptx"])
    arch = "sm_90a" if capability == 90 else f"sm_{capability}"
    command = [PTXAS, "-v", f"-arch={arch}", str(path), "-o", str(tmp_path / "kernel.cubin")]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    match = re.search(r"(\d+) bytes spill stores", said)
    assert match, said
    return int(match[1])


@pytest.mark.parametrize("capability", SHARED)
def test_kernels_fit(capability):
    for kernel, dtypes, launch, constants in launches(NEMOTRON, jnp.bfloat16, capability, True):
        program = compiled(kernel, dtypes, launch, constants, capability)
        assert program.metadata.shared <= SHARED[capability], (kernel.__name__, capability)


def test_hopper_multiplies_on_its_tensor_cores_and_spills_little(tmp_path):
    """`gradients` alone is short of registers: more warps spill none and take 1.6 times as long."""
    for kernel, dtypes, launch, constants in launches(NEMOTRON, jnp.bfloat16, 90, False):
        program = compiled(kernel, dtypes, launch, constants, 90)
        limit = 128 if kernel.__name__ == "gradients_kernel" else 0
        assert spilled(program, 90, tmp_path) <= limit, kernel.__name__
        if launch.rows:
            assert "wgmma.mma_async" in program.asm["ptx"], kernel.__name__


def test_float32_is_multiplied_exactly():
    small = NEMOTRON._replace(length=64, heads=2, groups=1, head_dim=16, state=16)
    for kernel, dtypes, launch, constants in launches(small, jnp.float32, 90, True):
        program = compiled(kernel, dtypes, launch, constants, 90)
        assert "mma" not in program.asm["ptx"], kernel.__name__


def test_a_sharded_scan_runs_on_each_device_s_rows_and_groups():
    topology = topologies.get_topology_desc(
        "h100", platform="cuda", target_config=H100, topology="1x4x1"
    )
    mesh = Mesh(np.asarray(topology.devices).reshape(2, 2), ("data", "model"))

    def placed(shape, dtype, *spec):
        sharding = NamedSharding(mesh, PartitionSpec(*spec))
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    x = placed((4, 256, 16, 80), jnp.bfloat16, "data", None, "model")
    dt = placed((4, 256, 16), jnp.float32, "data", None, "model")
    A = placed((16,), jnp.float32, "model")
    B = placed((4, 256, 4, 128), jnp.bfloat16, "data", None, "model")

    @jax.jit
    def run(inputs, dy):
        y, pull = jax.vjp(lambda *a: ssd(*a, implementation="triton")[0], *inputs)
        return y, pull(dy)

    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        program = run.lower((x, dt, A, B, B, A), x).compile().as_text()
    assert program is not None
    assert "all-gather" not in program
    kernels = re.findall(r"= (.*) custom-call\(.*triton_kernel_call", program)
    assert len(kernels) == 8
    assert sum("bf16[2,256,8,80]" in results for results in kernels) == 2  # y, dx
    assert sum("bf16[2,256,2,128]" in results for results in kernels) == 2  # dB, dC

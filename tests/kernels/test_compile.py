"""The kernels compile for the GPUs they are meant for, on a machine that has none.

Lowered through jax.export, which runs all of Triton's compiler down to PTX; and assembled, to see
that registers suffice: a spill to local memory would cost more than the kernels save.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
import triton
from jax import export
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from nvfp4_jax.kernels import launch, relu_squared
from nvfp4_jax.kernels.launch import Copy

from .cases import COLUMN_WISE, ROTATED, ROW_WISE, TILES, stochastic

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
POINTERS = {"float32": "*fp32", "bfloat16": "*bf16", "int32": "*i32", "uint32": "*u32"}
POINTERS |= {"uint8": "*u8"}
EXPORTABLE = [export.DisabledSafetyCheck.custom_call("triton_kernel_call")]


def through(shape, dtype, copies, capability):
    """Every launching function, for one tensor."""

    def run(x, signs, keys, offset):
        rows = x.shape[1]
        amax = launch.amax_bits(x, copies, signs, True, capability)
        arguments = (amax, signs, keys, offset, rows, True, capability)
        if len(copies) == 2:
            return launch.operands(x, copies, *arguments)
        (copy,) = copies
        operand = launch.operands(x, copies, *arguments)
        packed = launch.packed(x, copy, *arguments)
        return operand, launch.unpacked(*packed, operand[0].shape, copy, capability)

    return run, (
        jax.ShapeDtypeStruct(shape, dtype),
        jax.ShapeDtypeStruct((16,), jnp.float32),
        jax.ShapeDtypeStruct((len(copies), 2), jnp.uint32),
        jax.ShapeDtypeStruct((3,), jnp.uint32),
    )


def squares(shape, dtype, copies, capability):
    """relu(u)^2 and its gradient, with their amaxes."""

    def run(u, dr, signs):
        r = relu_squared.relu_squared(u, None, copies, signs, capability)
        return r, relu_squared.relu_squared(u, dr, copies, signs, capability)

    tensor = jax.ShapeDtypeStruct(shape, dtype)
    return run, (tensor, tensor, jax.ShapeDtypeStruct((16,), jnp.float32))


@pytest.mark.parametrize("capability", [80, 90, 100])
@pytest.mark.parametrize(
    ("shape", "copies"),
    [
        ((1, 32768, 3072), (ROW_WISE, ROTATED)),
        ((1, 37, 101), (ROW_WISE, ROTATED)),
        ((2, 64, 512), (ROW_WISE,)),
    ],
    ids=str,
)
def test_relu_squared_lowers_without_a_gpu(shape, copies, capability):
    run, arguments = squares(shape, jnp.bfloat16, copies, capability)
    lowered = export.export(jax.jit(run), platforms=["cuda"], disabled_checks=EXPORTABLE)
    assert "triton_kernel_call" in lowered(*arguments).mlir_module()


@pytest.mark.parametrize("capability", [80, 90, 100])
def test_relu_squared_has_registers_for_sixteen_warps(monkeypatch, tmp_path, capability):
    for code in machine_codes(monkeypatch, tmp_path, (ROW_WISE, ROTATED), capability, squares):
        registers, stack, local = resources(code, tmp_path)
        assert registers <= 128
        assert stack + local == 0


@pytest.mark.parametrize("capability", [80, 90, 100])
@pytest.mark.parametrize(
    ("shape", "dtype", "copies"),
    [
        ((2, 1000, 1001), jnp.bfloat16, (stochastic(ROW_WISE), stochastic(ROTATED))),
        ((1, 64, 512), jnp.float32, (stochastic(TILES, 16),)),
        ((1, 70, 90), jnp.bfloat16, (Copy("columns", rht=True),)),
        ((1, 64, 512), jnp.bfloat16, (stochastic(COLUMN_WISE, 32),)),
    ],
    ids=str,
)
def test_they_lower_without_a_gpu(shape, dtype, copies, capability):
    run, arguments = through(shape, dtype, copies, capability)
    lowered = export.export(jax.jit(run), platforms=["cuda"], disabled_checks=EXPORTABLE)(
        *arguments
    )
    assert "triton_kernel_call" in lowered.mlir_module()


@pytest.mark.parametrize("capability", [80, 90, 100])
@pytest.mark.parametrize(
    "copies",
    [
        (stochastic(ROW_WISE), stochastic(ROTATED)),
        (ROW_WISE, ROTATED),
        (stochastic(ROW_WISE, 32),),
        (stochastic(TILES, 16),),
    ],
    ids=str,
)
def test_no_register_spills(monkeypatch, tmp_path, copies, capability):
    for code in machine_codes(monkeypatch, tmp_path, copies, capability):
        _, stack, local = resources(code, tmp_path)
        assert stack + local == 0


@pytest.mark.parametrize("copies", [(stochastic(ROW_WISE), stochastic(ROTATED)), (ROTATED,)])
def test_registers_for_sixteen_warps(monkeypatch, tmp_path, copies):
    """Of 65,536 on a multiprocessor, 128 a thread: with 168 the two copies take 5% longer."""
    for code in machine_codes(monkeypatch, tmp_path, copies, 90):
        assert resources(code, tmp_path)[0] <= 128


def machine_codes(monkeypatch, folder, copies, capability, which=through) -> list[bytes]:
    """Of every kernel that `through`, or another, launches."""
    monkeypatch.setattr(triton.knobs.cache, "dir", str(folder))  # jax-triton switches it off
    launched = []

    def record(kernel, inputs, out_shape, *, warps, **meta):
        shapes = out_shape if isinstance(out_shape, list | tuple) else [out_shape]
        launched.append((kernel, [*inputs, *shapes], warps, meta))
        results = [jnp.zeros(s.shape, s.dtype) for s in shapes]
        return results if isinstance(out_shape, list | tuple) else results[0]

    monkeypatch.setattr(launch, "call", record)
    run, arguments = which((1, 1024, 1024), jnp.bfloat16, copies, capability)
    jax.eval_shape(run, *arguments)
    return [assembled(*one, capability) for one in launched]


def assembled(kernel, arrays, warps, meta, capability) -> bytes:
    """The machine code of one launch."""
    constants = {name: v for name, v in meta.items() if name in kernel.arg_names}
    signature = {
        name: POINTERS[a.dtype.name] for name, a in zip(kernel.arg_names, arrays, strict=False)
    }
    source = ASTSource(
        kernel,
        signature=signature | dict.fromkeys(constants, "constexpr"),
        constexprs={(kernel.arg_names.index(name),): v for name, v in constants.items()},
        attrs={(i,): [["tt.divisibility", 16]] for i in range(len(arrays))},
    )
    compiled = triton.compile(
        source,
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": warps, "enable_fp_fusion": False},
    )
    return compiled.asm["cubin"]


def resources(code: bytes, folder: Path) -> tuple[int, int, int]:
    """Registers of a thread, and bytes it keeps on its stack and in other local memory."""
    (folder / "kernel.cubin").write_bytes(code)
    command = [TOOLS / "cuobjdump", "-res-usage", folder / "kernel.cubin"]
    done = subprocess.run(command, capture_output=True, check=True, text=True)
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", done.stdout + done.stderr)
    assert found, done
    return int(found[1]), int(found[2]), int(found[3])

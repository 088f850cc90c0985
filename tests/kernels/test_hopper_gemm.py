"""The scaled product for Hopper: what it is compiled to, and what it computes when interpreted.

The interpreter runs every warpgroup, barrier and tile of the kernel on the CPU; speed and the real
tensor cores are left to tests/gpu.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import mosaic_gpu as plgpu

from nvfp4_jax.kernels import hopper_gemm
from nvfp4_jax.kernels.hopper_gemm import scaled_matmul, unsupported
from nvfp4_jax.kernels.hopper_gemm_body import gemm_kernel
from nvfp4_jax.kernels.hopper_gemm_tiling import TILINGS, Problem, tiling_for
from tests.gpu_compile import compile_for_h100, instructions, with_opcode
from tests.kernels.hopper_gemm_programs import CASES


@pytest.fixture(scope="module")
def programs() -> dict[tuple, tuple[str, str]]:
    """(HLO, PTX with the assembler's remarks) of every layout and output dtype."""
    command = [sys.executable, "-m", "tests.kernels.hopper_gemm_programs"]
    asked = {"MOSAIC_GPU_DUMP_PTX": "1", "MOSAIC_GPU_DUMP_PTXAS": "1", "JAX_PLATFORMS": "cpu"}
    ran = subprocess.run(
        ["env", *(f"{name}={value}" for name, value in asked.items()), *command],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    kernels = re.split(r"^\.version", ran.stdout, flags=re.MULTILINE)[1:]
    hlos = json.loads(ran.stderr.splitlines()[-1])  # a slow compiler may complain before
    return dict(zip(CASES, zip(hlos, kernels, strict=True), strict=True))


@pytest.mark.parametrize("case", CASES)
def test_the_program_is_one_kernel_with_no_pass_of_its_own_for_scales_or_layouts(programs, case):
    program = instructions(programs[case][0])
    assert len(with_opcode(program, "custom-call")) == 1
    assert {i.opcode for i in program} <= {"parameter", "bitcast", "custom-call"}


@pytest.mark.parametrize("case", CASES)
def test_tensor_cores_multiply_and_registers_suffice(programs, case):
    ptx = programs[case][1]
    assert ".target sm_90a" in ptx
    assert "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16" in ptx
    assert "cp.async.bulk.tensor" in ptx
    assert "0 bytes spill stores, 0 bytes spill loads" in ptx


@pytest.mark.parametrize("case", CASES)
def test_each_sum_is_multiplied_by_each_scale_in_float32(programs, case):
    ptx = programs[case][1]
    sums = 64 * 256 // 128  # of a thread of a consumer
    assert len(re.findall(r"\bmul(?:\.rn)?\.f32", ptx)) == 2 * sums


def test_it_compiles_inside_scan_and_checkpoint():
    def layers(x, w, scale):
        @jax.checkpoint
        def layer(x, _):
            return scaled_matmul(x, w, 1, 0, (scale,)), None

        return jax.lax.scan(layer, x, None, length=3)[0]

    x, w = (jax.ShapeDtypeStruct((256, 256), jnp.bfloat16) for _ in range(2))
    program = instructions(compile_for_h100(layers, x, w, jax.ShapeDtypeStruct((), jnp.float32)))
    assert len(with_opcode(program, "custom-call")) == 1
    assert not with_opcode(program, "multiply")


@pytest.mark.parametrize(
    ("contract_a", "contract_b", "dtype", "shape"),
    [
        (1, 0, "bfloat16", (320, 576, 320)),
        (1, 1, "bfloat16", (160, 608, 96)),
        (0, 0, "float32", (288, 320, 704)),
    ],
)
def test_interpreted_on_the_cpu_it_is_the_scaled_product(
    monkeypatch, contract_a, contract_b, dtype, shape
):
    """On four SMs, so that each computes several tiles; the last ones reach over the edge."""
    monkeypatch.setattr(hopper_gemm, "_sm_count", lambda: 4)
    monkeypatch.setattr(hopper_gemm, "lowered_once", lambda kernel, _, *arrays: kernel(*arrays))
    m, n, k = shape
    a = values(0, (m, k) if contract_a else (k, m))
    b = values(1, (n, k) if contract_b else (k, n))
    scales = jnp.float32(0.3), jnp.float32(1e-3)
    with plgpu.force_gpu_interpret_mode():
        y = jax.jit(lambda a, b, *s: scaled_matmul(a, b, contract_a, contract_b, s, dtype))(
            a, b, *scales
        )
    # Small integers: their sums are exact in any order, so the bits are defined.
    exact = np.einsum(
        ("mk" if contract_a else "km") + "," + ("nk" if contract_b else "kn") + "->mn",
        np.asarray(a, np.float32),
        np.asarray(b, np.float32),
    )
    expected = (exact * np.float32(0.3) * np.float32(1e-3)).astype(y.dtype)
    np.testing.assert_array_equal(np.asarray(y), expected)


def values(seed: int, shape: tuple[int, int]) -> jax.Array:
    return jax.random.randint(jax.random.key(seed), shape, -12, 13).astype(jnp.bfloat16)


@pytest.mark.parametrize("tiling", TILINGS)
@pytest.mark.parametrize("unit", [32, 64])
def test_every_tiling_compiles_within_shared_memory(tiling, unit):
    problem = Problem(50 * unit, 101 * unit, 960, 1, 0, np.dtype(jnp.bfloat16))
    a = jax.ShapeDtypeStruct((problem.m, problem.k), jnp.bfloat16)
    b = jax.ShapeDtypeStruct((problem.k, problem.n), jnp.bfloat16)
    assert "mosaic_gpu" in compile_for_h100(gemm_kernel(problem, tiling, 0, 132), a, b)


WIDEST = {  # (m, n): columns of a tile on 132 SMs
    (8192, 8192): 256,  # 16 waves of 66 pairs, the last half full
    (1280, 7200): 192,  # 190 pairs are 3 waves, where 145 of the widest would be 3 as well
    (768, 3072): 160,  # 60 pairs, one wave; 36 of the widest would leave half the SMs idle
}


@pytest.mark.parametrize("shape", WIDEST)
def test_tiles_are_as_wide_as_the_last_wave_allows(shape):
    problem = Problem(*shape, 4096, 0, 0, np.dtype(np.float32))
    assert tiling_for(problem, 132).n == WIDEST[shape]


REASONS = {
    "Hopper": {"compute_capability": (10, 0)},
    "multiple of 32": {"a_shape": (1024, 1000), "b_shape": (1000, 1024)},
    "too narrow": {"b_shape": (1024, 64)},
    "matrices": {"a_shape": (2, 1024, 1024)},
    "differ": {"b_shape": (512, 1024)},
    "float16": {"dtype": jnp.float16},
}


USUAL = {
    "a_shape": (1024, 1024),
    "b_shape": (1024, 1024),
    "contract_a": 1,
    "contract_b": 0,
    "dtype": jnp.bfloat16,
    "compute_capability": (9, 0),
}


def test_the_usual_product_is_supported():
    assert unsupported(**USUAL) is None


@pytest.mark.parametrize("word", REASONS)
def test_what_is_not_supported_has_a_reason(word):
    assert word in (unsupported(**USUAL | REASONS[word]) or "")


def test_an_unsupported_product_raises_with_shapes_and_reason():
    with pytest.raises(ValueError, match=r"\(8, 100\).*multiple of 32"):
        scaled_matmul(jnp.ones((8, 100), jnp.bfloat16), jnp.ones((100, 8), jnp.bfloat16), 1, 0)


@pytest.mark.parametrize(
    ("m", "n", "k", "slower"),
    [
        (8192, 8192, 8192, False),
        (1280, 5120, 16384, False),  # Wgrad of 1b: 16% idle, as long as the scales' pass
        (768, 3072, 32768, True),  # of 150m
        (768, 768, 32768, True),
        (32768, 768, 3072, False),
    ],
)
def test_few_tiles_with_long_sums_are_not_for_this_kernel(monkeypatch, m, n, k, slower):
    monkeypatch.setattr(hopper_gemm, "_sm_count", lambda: 132)
    assert hopper_gemm.slower((k, m), (k, n), 0, 0, jnp.float32) == slower

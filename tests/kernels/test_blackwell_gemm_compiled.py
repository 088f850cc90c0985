"""What the Blackwell GEMM is compiled to: its machine code, for sm_100a and sm_103a.

Compiled and read, never executed. How to count: `UTCOMMA.4X` is a block-scaled product of E2M1
with four E4M3 scales per row and instruction, `.2CTA` one of a pair of SMs; `UTCCP` copies scales
from shared to tensor memory; `UTMALDG` and `UTMASTG` are loads and stores by TMA; `UTCBAR` reports
finished products to a barrier; `LDTM` reads sums.
"""

from __future__ import annotations

import jax.numpy as jnp
import pytest

from nvfp4_jax.kernels.blackwell_gemm_tiling import (
    INSTRUCTION_K,
    LANES,
    SCALES_K,
    STEP_K,
    Problem,
)
from tests import sass
from tests.gpu_compile import instructions, with_opcode
from tests.kernels.blackwell_gemm_programs import TARGETS, VARIANTS, compiled


@pytest.fixture(scope="module", params=TARGETS)
def gpu(request):
    return request.param, compiled(request.param)


def names(variant) -> str:
    tiling, dtype = variant
    return f"{tiling.ctas}x{tiling.n}-{dtype}"


each = pytest.mark.parametrize("variant", VARIANTS, ids=names)


@each
def test_the_program_is_one_kernel_and_nothing_is_moved_for_it(gpu, variant):
    program = instructions(gpu[1][variant].hlo)
    assert len(with_opcode(program, "custom-call")) == 1
    assert {i.opcode for i in program} <= {"parameter", "bitcast", "custom-call"}


@each
def test_it_is_assembled_for_this_gpu_and_registers_suffice(gpu, variant):
    name, programs = gpu
    assert f".target {TARGETS[name]}" in programs[variant].ptx
    assert "0 bytes spill stores, 0 bytes spill loads" in programs[variant].remarks
    assert sass.spills(programs[variant].program) == 0


@each
def test_a_step_is_its_products_and_the_copies_of_their_scales(gpu, variant):
    """All of them in one loop, which is all there is of them; none of another kind."""
    tiling, _ = variant
    program = gpu[1][variant].program
    step = program.loop("UTCOMMA")
    pair = ("2CTA",) if tiling.ctas == 2 else ()
    products = STEP_K // INSTRUCTION_K
    tiles = STEP_K // SCALES_K * (1 + tiling.n // LANES)
    assert step.count("UTCOMMA", "4X", *pair) == program.count("UTCOMMA") == products
    assert step.count("UTCCP", *pair) == program.count("UTCCP") == tiles
    assert step.count("UTCBAR", *pair) == 1
    assert program.count("UTCOMMA", "2CTA") == (products if pair else 0)
    others = {opcode.split(".")[0] for opcode in program.opcodes() if "MMA" in opcode}
    assert others == {"UTCOMMA"}


@each
def test_operands_and_scales_come_by_tma_and_the_result_goes_by_it(gpu, variant):
    tiling, dtype = variant
    program = gpu[1][variant].program
    problem = Problem(8, 8, STEP_K, jnp.dtype(dtype))
    assert program.loop("UTMALDG").count("UTMALDG") == program.count("UTMALDG") == 4
    assert program.count("UTMALDG", "2CTA") == (4 if tiling.ctas == 2 else 0)
    assert program.count("UTMALDG", "MULTICAST") == (1 if tiling.ctas == 2 else 0)
    assert program.count("UTMASTG") == tiling.chunks(problem)
    assert program.count("LDG") == 2  # the tensor scales
    assert not program.count("STG")

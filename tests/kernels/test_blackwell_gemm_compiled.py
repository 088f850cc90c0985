"""What the Blackwell GEMM is compiled to: its machine code, for sm_100a and sm_103a.

Compiled and read, never executed. XLA's own assembler makes both; its code for sm_100a is what is
read, while that for sm_103a, which Triton's older disassembler does not know, is assembled once
more from the same PTX by Triton's. How to count: `UTCOMMA.4X` is a block-scaled product of E2M1
with four E4M3 scales per row and instruction, `.2CTA` one of a pair of SMs; `UTCCP` copies scales
from shared to tensor memory; `UTMALDG` and `UTMASTG` are loads and stores by TMA; `UTCBAR` reports
finished products to a barrier; `LDTM` reads sums.
"""

from __future__ import annotations

import re

import jax.numpy as jnp
import pytest

from experiments import blackwell_roofline
from nvfp4_jax.gpus import find_gpu
from nvfp4_jax.kernels.blackwell_gemm_tiling import (
    INSTRUCTION_K,
    LANES,
    SCALES_K,
    STEP_K,
    TILINGS,
    TMEM_COLUMNS,
    Problem,
)
from tests import sass
from tests.gpu_compile import instructions, with_opcode
from tests.kernels import tcgen05_ptx
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


@each
def test_descriptors_say_what_is_multiplied(gpu, variant):
    """Two E2M1 operands along rows of 128 bytes, four UE4M3 scales for 64 elements of a row."""
    tiling, _ = variant
    products = tcgen05_ptx.products(gpu[1][variant].ptx)
    assert len(products) == STEP_K // INSTRUCTION_K
    nothing = dict.fromkeys(tcgen05_ptx.INSTRUCTION, 0)
    sizes = {"n_eighths": tiling.n // 8, "m_by_128": tiling.m // 128}
    rows = dict.fromkeys(tcgen05_ptx.SHARED_MEMORY, 0) | {"stride_offset": 8 * 128 // 16}
    for i, product in enumerate(products):
        kind = f"cta_group::{tiling.ctas}.kind::mxf4nvf4.block_scale.scale_vec::4X"
        assert product.modifiers == kind
        assert product.instruction == nothing | {"a_type": 1, "b_type": 1} | sizes
        along_k = {"address": i * INSTRUCTION_K // 2 // 16, "swizzle": 2}
        assert product.a == product.b == rows | along_k


@each
def test_scales_are_read_where_they_were_copied_and_sums_lie_apart(gpu, variant):
    """A tile of 128 rows x 64 elements takes 4 columns; tiles of b for one product lie together."""
    tiling, _ = variant
    ptx = gpu[1][variant].ptx
    products, tiles = tcgen05_ptx.products(ptx), tiling.n // LANES
    a_first, b_first = products[0].a_scale, products[0].b_scale
    assert [p.a_scale - a_first for p in products] == [4 * i for i in range(len(products))]
    assert [p.b_scale - b_first for p in products] == [4 * tiles * i for i in range(len(products))]
    copies = tcgen05_ptx.scale_copies(ptx)
    group = f"cta_group::{tiling.ctas}.32x128b.warpx4"
    assert {modifiers for modifiers, _ in copies} == {group}
    columns = sorted(column for _, column in copies)
    assert columns == list(range(0, tiling.scale_columns, 4))
    assert {a_first, b_first} == {0, 4 * len(products)}
    assert tiling.scale_columns + tiling.second + tiling.n <= TMEM_COLUMNS


@each
def test_barriers_expect_what_arrives(gpu, variant):
    """`full`: four copies of 128 arrivals, and the bytes of a stage of every CTA of the pair."""
    tiling, _ = variant
    ptx = gpu[1][variant].ptx
    assert sum(tcgen05_ptx.expected_bytes(ptx)) == tiling.ctas * tiling.stage_bytes()
    expected = [4 * 128] * tiling.stages + [1] * (tiling.stages + 2) + [tiling.ctas] * 2
    assert sorted(tcgen05_ptx.arrivals(ptx)) == sorted(expected)


@each
def test_each_sum_is_multiplied_by_each_scalar_in_float32(gpu, variant):
    """One after the other, before the only rounding; the registers of one store at a time."""
    tiling, dtype = variant
    ptx = gpu[1][variant].ptx
    sums = tiling.n  # of a thread: 128 rows of n columns for 128 threads
    pairs = re.findall(r"\bmul(?:\.rn)?\.f32x2\b", ptx)
    ones = re.findall(r"\bmul(?:\.rn)?\.f32\b", ptx)
    assert 2 * len(pairs) + len(ones) == 2 * sums
    assert not re.findall(r"\bfma\.\w+\.f32|\bmul\.ftz", ptx)
    halves = len(re.findall(r"cvt\.rn\.bf16x2\.f32", ptx))
    assert halves == (sums // 2 if dtype == "bfloat16" else 0)


def test_the_roofline_is_what_the_benchmarks_say(gpu):
    """Of 8192 cubed on 148 SMs; BENCHMARKS.md says what each assumption is worth."""
    counted = blackwell_roofline.count(gpu[1][TILINGS[0], "bfloat16"])
    roofs = blackwell_roofline.roofs(counted)
    loops = [blackwell_roofline.main_loop_share(counted, roof) for roof in roofs]
    wholes = [blackwell_roofline.whole_share(counted, roof, 148) for roof in roofs]
    assert [round(100 * share) for share in loops] == [100, 91, 84, 80]
    assert [round(100 * share) for share in wholes] == [93, 88, 81, 77]
    assert counted.instructions < counted.tensor() / 2  # the loop that issues is not the limit
    assert blackwell_roofline.hidden_latency(counted) > 2000
    assert round(blackwell_roofline.l2_needed(counted, 148, 0.8)) == 63
    assert round(100 * blackwell_roofline.memory_share(counted, find_gpu("b200"))) == 42


@pytest.mark.parametrize("tiling", TILINGS)
def test_a_tile_costs_what_the_roofline_says(gpu, tiling):
    steps = [
        blackwell_roofline.roofs(blackwell_roofline.count(gpu[1][other, "bfloat16"]))[2].step
        for other in (tiling, TILINGS[0])
    ]
    assert tiling.cost == round(256 * steps[0] / steps[1])

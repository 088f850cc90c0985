"""The quantizers as compiled for Blackwell: which instruction rounds, and how often.

What a thread rounds is known, so the number of its casts is; a kernel that rounds by other means,
to nearest where it should be stochastic, or not at all has another number.
"""

from __future__ import annotations

from collections import Counter

import jax
import jax.numpy as jnp
import pytest
import triton

from nvfp4_jax.compile_for import compile_for, mesh_of
from nvfp4_jax.compiled.hlo import parse
from nvfp4_jax.compiled.kernels import triton_kernel
from nvfp4_jax.kernels import blackwell_quantize, launch, tiles, triton_casts, triton_quads
from nvfp4_jax.kernels.tiles import Copy
from tests import sass

from .cases import COLUMN_WISE, ROTATED, ROW_WISE, TILES, stochastic
from .test_compile import assembled, resources

DUAL = (stochastic(ROW_WISE), stochastic(ROTATED))
PLAIN = (ROW_WISE, ROTATED)
WEIGHT = (TILES, Copy("rows", square=True))
ALL = {
    "gradient": DUAL,
    "input": PLAIN,
    "weight": WEIGHT,
    "gradient, fprop's axis": (stochastic(ROW_WISE),),
    "gradient, tokens": (stochastic(COLUMN_WISE),),
    "rotated columns": (stochastic(Copy("columns", rht=True)),),
}


@pytest.fixture
def compiled(monkeypatch, tmp_path):
    """(copies, capability, shape, dtype) -> the PTX and the machine code of the kernel."""
    monkeypatch.setattr(triton.knobs.cache, "dir", str(tmp_path))  # jax-triton switches it off

    def compile(copies, capability, shape=(1, 1024, 1024), dtype=jnp.bfloat16):
        launched = []

        def record(kernel, inputs, out_shape, *, warps, compute_capability, grid, **meta):
            launched.append((kernel, [*inputs, *out_shape], warps, meta))
            return [jnp.zeros(s.shape, s.dtype) for s in out_shape]

        def run(x, amax, signs, keys, offset):
            arguments = (amax, signs, keys, offset, shape[1], False, capability)
            return blackwell_quantize.native_operands(x, copies, *arguments)

        monkeypatch.setattr(launch, "call", record)
        shapes = [((len(copies),), jnp.int32), ((16,), jnp.float32)]
        shapes += [((len(copies), 2), jnp.uint32), ((3,), jnp.uint32)]
        jax.eval_shape(run, *(jax.ShapeDtypeStruct(*s) for s in [(shape, dtype), *shapes]))
        return assembled(*launched[0], capability)

    return compile


def casts(program: sass.Program) -> Counter[str]:
    """Conversions to E2M1 by how they round; one instruction takes two elements."""
    every, stochastically = program.count("F2FP", "E2M1"), program.count("F2FP", "E2M1", "RS")
    return Counter(nearest=every - stochastically, stochastic=stochastically)


def expected_casts(copies: tuple[Copy, ...]) -> Counter[str]:
    """Of one thread: half of its elements for every copy."""
    tile = tiles.for_native(copies)
    pairs = tile.down * tile.across * 256 // (32 * tile.warps) // 2
    return Counter(
        {
            "nearest": pairs * sum(not copy.bits for copy in copies),
            "stochastic": pairs * sum(bool(copy.bits) for copy in copies),
        }
    )


@pytest.mark.parametrize("capability", [100, 103])
@pytest.mark.parametrize("kind", ALL)
def test_the_instructions_that_round(compiled, tmp_path, kind, capability):
    code = compiled(ALL[kind], capability)
    program = sass.disassembled(code)
    assert casts(program) == expected_casts(ALL[kind])
    assert program.count("F2FP", "E4M3") > 0
    assert sass.spills(program) == 0
    assert resources(code, tmp_path)[1:] == (0, 0)


@pytest.mark.parametrize("capability", [100, 103])
def test_what_the_gradient_needs_is_of_the_architecture_itself(compiled, monkeypatch, capability):
    """`cvt.rs` is assembled for sm_100a and sm_103a, not for what all of a family share."""
    seen = []
    compile = triton.compile
    monkeypatch.setattr(
        triton, "compile", lambda *a, **k: seen.append(compile(*a, **k)) or seen[-1]
    )
    compiled(DUAL, capability)
    assert f".target sm_{capability}a" in seen[0].asm["ptx"]
    assert "cvt.rs.satfinite.e2m1x4.f32" in seen[0].asm["ptx"]


@pytest.mark.parametrize("capability", [80, 90])
def test_elsewhere_it_is_arithmetic(compiled, tmp_path, capability):
    code = compiled(DUAL, capability)
    assert resources(code, tmp_path)[1:] == (0, 0)
    if capability == 90:
        assert not casts(sass.disassembled(code)).total()


def test_more_than_8_random_bits_are_arithmetic(compiled, tmp_path):
    code = compiled((stochastic(ROW_WISE, 16), stochastic(ROTATED, 32)), 100)
    assert not casts(sass.disassembled(code)).total()
    assert resources(code, tmp_path)[1:] == (0, 0)


def test_ragged_float32_spills_nothing(compiled, tmp_path):
    code = compiled(DUAL, 100, (1, 1000, 1001), jnp.float32)
    assert resources(code, tmp_path)[1:] == (0, 0)


@pytest.mark.parametrize("kind", ["gradient", "input", "weight"])
def test_registers_for_sixteen_warps(compiled, tmp_path, kind):
    """Of 65,536 on a multiprocessor, 128 a thread."""
    assert resources(compiled(ALL[kind], 100), tmp_path)[0] <= 128


def test_rounding_to_nearest_is_not_taken_for_stochastic(compiled):
    assert casts(sass.disassembled(compiled(PLAIN, 100))) != expected_casts(DUAL)


@triton.jit
def _cut_off(v0, v1, v2, v3, random):
    """A quad without a rounding."""
    bits = v0.to(triton.language.uint32, bitcast=True) ^ v1.to(triton.language.uint32, bitcast=True)
    return (bits >> 16) ^ random


def test_a_rounding_that_is_missing_is_missed(compiled, monkeypatch):
    monkeypatch.setattr(triton_quads, "stochastic_quad", _cut_off)
    assert casts(sass.disassembled(compiled(DUAL, 100))) != expected_casts(DUAL)


def test_the_nearest_cast_in_place_of_the_stochastic_one_is_noticed(compiled, monkeypatch):
    monkeypatch.setattr(triton_quads, "stochastic_quad", _nearest)
    assert casts(sass.disassembled(compiled(DUAL, 100))) != expected_casts(DUAL)


@triton.jit
def _nearest(v0, v1, v2, v3, random):
    """Stochastic rounding dropped: random bits are drawn and not used."""
    return triton_casts.nearest_quad(v0, v1, v2, v3)


@pytest.mark.parametrize(("gpu", "capability"), [("b200", 100), ("gb300", 103), ("h100", 90)])
def test_what_xla_is_given(gpu, capability):
    """The PTX in the program that XLA makes for a GPU: its architecture, and what rounds."""

    def run(x, signs, keys, offset):
        amax = launch.amax_bits(x, DUAL, signs, False, capability)
        arguments = (amax, signs, keys, offset, x.shape[1], False, capability)
        return blackwell_quantize.native_operands(x, DUAL, *arguments)

    shapes = [((1, 300, 500), jnp.bfloat16), ((16,), jnp.float32)]
    shapes += [((2, 2), jnp.uint32), ((3,), jnp.uint32)]
    arguments = (jax.ShapeDtypeStruct(*s) for s in shapes)
    text = compile_for(mesh_of(gpu), run, *arguments).as_text()
    assert text is not None
    calls = filter(None, map(triton_kernel, parse(text).instructions.values()))
    (ptx,) = [call.ptx for call in calls if "native" in call.name]
    assert f".target sm_{capability}a" in ptx
    assert ("cvt.rs.satfinite.e2m1x4.f32" in ptx) == (capability >= 100)

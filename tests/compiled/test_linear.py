"""What is proven of an honest layer, and that a dishonest one is found out."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import pytest
import triton

from nvfp4_jax import Gemm, LinearPrecision, Quantizer, rounding
from nvfp4_jax.compiled.proof import prove
from nvfp4_jax.kernels import scales, triton_quantize, views
from nvfp4_jax.precision import GEMMS
from tests.compiled.linear import NAME, compiled, compiled_here, problems, proof
from tests.gemm.precisions import PAPER
from tests.gpu_compile import in_process_of

pytestmark = pytest.mark.usefixtures("quick_to_compile")

PACKED = dataclasses.replace(PAPER, residuals="packed")
EXECUTORS = {
    None: {"XLA dot bf16", "XLA dot f32"},
    "a100": {"XLA Triton bf16"},
    "h100": {"wgmma scaled", "XLA Triton bf16"},  # Wgrad is six tiles here: too few for wgmma's
    "b200": {"tcgen05 block-scaled"},
}
FLOPS = 2 * 512 * 256 * 384


@pytest.mark.parametrize("gpu", EXECUTORS)
def test_an_honest_layer(gpu):
    """Rounded as the recipe says, in every GEMM, and multiplied by what is best there."""
    found = proof(gpu, PAPER)
    assert not found.fallbacks
    assert [g.gemm for g in found.gemms] == list(GEMMS)
    assert {e for g in found.gemms for e in g.executors} <= EXECUTORS[gpu]
    words = [[o.found for o in g.operands] for g in found.gemms]
    nearest, noisy = "e2m1 nearest, scales e4m3", "e2m1 stochastic, scales e4m3"
    assert words == [[nearest, nearest], [noisy, nearest], [nearest, noisy]]
    kind = "native" if gpu == "b200" else "emulated"
    assert found.share_by_format() == {f"nvfp4 {kind}": 1.0}
    if kind == "emulated":  # 4-bit tensor cores pad what they contract
        assert {g.flops for g in found.gemms} == {FLOPS}


@pytest.mark.parametrize("gpu", [None, "h100"])
def test_what_is_kept_packed_is_followed_to_where_it_was_rounded(gpu):
    assert not proof(gpu, PACKED).fallbacks


FORMATS = [
    "mxfp4",
    "mxfp8_e4m3",
    "mxfp8_e5m2",
    "fp8_e4m3",
    "fp8_e5m2",
]


@pytest.mark.parametrize("name", FORMATS)
def test_other_formats(name):
    q = Quantizer(name)
    precision = LinearPrecision(fprop=Gemm(input=q, weight=q), dgrad=Gemm(grad=q))
    found = proof(None, precision)
    assert not found.fallbacks
    formats = {g.gemm: g.format for g in found.gemms}
    assert formats == {
        "fprop": f"{name} emulated",
        "dgrad": f"{name} x bf16 emulated",
        "wgrad": "bf16",
    }


def test_a_recipe_that_the_program_does_not_follow():
    """A layer compiled in bf16, held against the paper's recipe."""
    found = prove(compiled(None, LinearPrecision()), [(NAME, PAPER)])
    assert set(problems(found)) == set(GEMMS)
    assert all("not rounded to nvfp4's E2M1" in text for text in problems(found).values())


def test_a_layer_that_is_not_in_the_program():
    found = prove(compiled(None, LinearPrecision()), [("blocks_4/mlp/up", PAPER)])
    assert set(problems(found).values()) == {"no product of this name is in the program"}


def unrounded(x, *_):
    return x


def as_casts(x, element):
    """Nearest as one would write it first, which XLA deletes on GPUs."""
    return x.astype(element.dtype).astype(jnp.float32)


@pytest.mark.parametrize("gpu", [None, "h100"])
def test_deleting_the_rounding_is_found(gpu, monkeypatch):
    """The definition without its element rounding; `mxfp4`, which has no fused kernel."""
    monkeypatch.setattr(rounding, "round_nearest", unrounded)
    q = Quantizer("mxfp4")
    found = proof(gpu, LinearPrecision(fprop=Gemm(input=q, weight=q)))
    assert problems(found).keys() == {"fprop"}
    assert "not rounded to mxfp4's E2M1; it comes from" in problems(found)["fprop"]


def test_one_operand_left_unrounded_is_found(monkeypatch):
    """Nearest deleted, stochastic kept: the gradients alone are right."""
    monkeypatch.setattr(rounding, "round_nearest", unrounded)
    found = problems(proof(None, PAPER))
    assert found["fprop"].startswith("input is not rounded")
    assert found["dgrad"].startswith("weight is not rounded")
    assert found["wgrad"].startswith("input is not rounded")


def test_a_rounding_that_the_compiler_deletes_is_found(monkeypatch):
    """Written as a pair of casts: XLA for a GPU takes it away, and the proof sees the program."""
    monkeypatch.setattr(rounding, "round_nearest", as_casts)
    q = Quantizer("mxfp4")
    found = proof("h100", LinearPrecision(fprop=Gemm(input=q, weight=q)))
    assert "not rounded to mxfp4's E2M1" in problems(found)["fprop"]


def test_scales_left_unrounded_are_found(monkeypatch):
    monkeypatch.setattr(scales, "round_nearest", unrounded)
    found = problems(proof(None, PAPER))
    assert set(found) == set(GEMMS)
    assert all("reaches the product unrounded" in text for text in found.values())


def test_dropping_stochastic_rounding_is_found(monkeypatch):
    nearest = rounding.round_nearest
    monkeypatch.setattr(rounding, "round_stochastic", lambda x, _, element: nearest(x, element))
    found = problems(proof(None, PAPER))
    assert found == {
        "dgrad": "grad is rounded nearest, and the recipe says stochastic",
        "wgrad": "grad is rounded nearest, and the recipe says stochastic",
    }


def test_noise_that_is_none_is_found(monkeypatch):
    """Stochastic rounding with the same bits everywhere: a floor, and no Philox."""
    monkeypatch.setattr(rounding, "_uniform", lambda random: jnp.float32(0.5))
    found = problems(proof(None, PAPER))
    assert found.keys() == {"dgrad", "wgrad"}
    assert all("without Philox" in text for text in found.values())


@triton.jit
def _unrounded(a):
    return a


def test_a_kernel_that_does_not_round_is_found(monkeypatch):
    monkeypatch.setattr(triton_quantize, "nearest_e2m1", _unrounded)
    found = problems(proof("h100", PAPER, (448, 320, 288)))
    assert set(found) == set(GEMMS)
    assert "input is not rounded to nvfp4's E2M1" in found["fprop"]


def test_a_kernel_without_its_noise_is_found(monkeypatch):
    """Every copy asked for without random bits, as a forgotten argument would have it."""
    honest = views.copy_of
    monkeypatch.setattr(views, "copy_of", lambda *a: dataclasses.replace(honest(*a), bits=0))
    found = problems(proof("h100", PAPER, (480, 320, 352)))
    assert found.keys() == {"dgrad", "wgrad"}
    assert "grad is rounded nearest" in found["dgrad"]


def native_without_noise() -> str:
    honest = views.copy_of
    views.copy_of = lambda *a: dataclasses.replace(honest(*a), bits=0)
    try:
        return compiled_here("b200", PAPER, (384, 512, 640))
    finally:
        views.copy_of = honest


def test_a_native_kernel_without_its_noise_is_found():
    found = problems(prove(in_process_of("b200", native_without_noise), [(NAME, PAPER)]))
    assert found.keys() == {"dgrad", "wgrad"}
    assert "grad is rounded nearest" in found["wgrad"]


def test_a_forced_fallback_on_blackwell_is_found():
    """Native kernels were chosen, and one layer was made to run emulated."""
    text = compiled("b200", PAPER, implementation="triton")
    chosen = {(PAPER, gemm): None for gemm in GEMMS}
    found = prove(text, [(NAME, PAPER)], emulated=chosen)
    assert set(problems(found)) == set(GEMMS)
    assert all("instead of 4-bit tensor cores" in text for text in problems(found).values())
    assert not prove(text, [(NAME, PAPER)]).fallbacks, "emulated is honest where nothing better is"

"""A whole linear layer compiled for GPUs that are not here: which kernels it is made of."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import pytest

import nvfp4_jax as nvfp4
from nvfp4_jax import LinearPrecision, Quantizer
from nvfp4_jax.compile_for import compile_for, mesh_of
from nvfp4_jax.kernels import available, capability, select
from nvfp4_jax.operands import amax_bits
from tests.gemm.precisions import PAPER

KEY = jax.random.key(0)
NUMBERS = (((1,), (0,)), ((), ()))
SHAPES = ((2048, 1024), (1024, 2048), (2048, 2048))


def compiled(gpu: str, run, *shapes_and_dtypes) -> str:
    """The optimized HLO of `run`, traced and compiled for a GPU by its name."""
    arguments = [jax.ShapeDtypeStruct(s, d) for s, d in shapes_and_dtypes]
    text = compile_for(mesh_of(gpu), run, *arguments).as_text()
    assert text is not None
    return text


def linear(precision: LinearPrecision, shapes=SHAPES):
    def run(x, w, dy, key):
        dot = nvfp4.make_dot_general(precision, jax.random.wrap_key_data(key))
        y, pull = jax.vjp(lambda x, w: dot(x, w, NUMBERS), x, w)
        return (y, *pull(dy))

    x, w, dy = shapes
    return run, (x, jnp.bfloat16), (w, jnp.float32), (dy, jnp.bfloat16), ((2,), jnp.uint32)


def calls(hlo: str, target: str) -> list[str]:
    return [line for line in hlo.splitlines() if f'custom_call_target="{target}' in line]


def test_on_hopper_a_linear_is_six_quantizing_kernels_and_three_products():
    """Two for each of x, w and dy; no tensor is transposed, copied or scaled on its own."""
    hlo = compiled("h100", *linear(PAPER))
    assert len(calls(hlo, "triton_kernel_call")) == 6
    assert len(calls(hlo, "mosaic_gpu")) == 3
    for rows, columns in SHAPES:
        moved = re.findall(rf"= \w+\[{rows},{columns}\]\S* (\w+)\(", hlo)
        assert not {"transpose", "copy", "multiply", "convert"} & set(moved)


def test_a_narrow_layer_leaves_its_long_sums_to_cublas():
    """Wgrad of 256 x 384 is six tiles of 132, each of 8192 terms."""
    hlo = compiled("h100", *linear(PAPER, ((8192, 256), (256, 384), (8192, 384))))
    assert len(calls(hlo, "mosaic_gpu")) == 2


def test_on_ampere_the_products_are_xlas():
    hlo = compiled("a100", *linear(PAPER))
    assert len(calls(hlo, "triton_kernel_call")) == 6
    assert not calls(hlo, "mosaic_gpu")


def test_what_has_no_fused_kernel_runs_as_the_definition():
    mxfp4 = Quantizer("mxfp4")
    hlo = compiled("h100", *linear(LinearPrecision(fprop=nvfp4.Gemm(input=mxfp4, weight=mxfp4))))
    assert not calls(hlo, "triton_kernel_call")


def test_a_weight_whose_amax_is_known_is_read_once():
    """Within a scan over microbatches XLA does not move the search out; we do."""

    def run(xs, w, dys, key):
        amax = amax_bits(w, jnp.bfloat16)

        def microbatch(total, arrays):
            x, dy = arrays
            dot = nvfp4.make_dot_general(PAPER, jax.random.wrap_key_data(key), weight_amax=amax)
            y, pull = jax.vjp(lambda x, w: dot(x, w, NUMBERS), x, w)
            return total + pull(dy + y)[1], None

        return jax.lax.scan(microbatch, jnp.zeros(w.shape, jnp.float32), (xs, dys))[0]

    x, w, dy = SHAPES
    hlo = compiled(
        "h100",
        run,
        ((4, *x), jnp.bfloat16),
        (w, jnp.float32),
        ((4, *dy), jnp.bfloat16),
        ((2,), jnp.uint32),
    )
    reads = [line for line in calls(hlo, "triton_kernel_call") if "f32[1,1024,2048]" in line]
    assert reads
    assert not [line for line in reads if re.search(r"= s32\[", line)]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("NVIDIA A100-SXM4-80GB", (8, 0)),
        ("NVIDIA H100 80GB HBM3", (9, 0)),
        ("NVIDIA H200", (9, 0)),
        ("NVIDIA GH200 480GB", (9, 0)),
        ("NVIDIA L40S", (8, 9)),
        ("NVIDIA B200", (10, 0)),
        ("NVIDIA GB300", (10, 3)),
        ("Tesla T4", None),
    ],
)
def test_gpus_by_name(name, expected):
    assert capability.by_name(name) == expected


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (None, "needs an NVIDIA GPU, and JAX sees none"),
        ((7, 5), "is for compute capability 8.0 to 10.x, and this GPU has 7.5"),
        ((12, 0), "is for compute capability 8.0 to 10.x, and this GPU has 12.0"),
    ],
)
def test_a_name_that_cannot_run_says_why(monkeypatch, found, reason):
    monkeypatch.setattr(available, "capability", lambda: found)
    with pytest.raises(ValueError, match=reason):
        select.select("triton")
    assert select.best() == ("xla", f"triton {reason}")
    assert select.select(None) is select.select("xla")


def test_without_its_package_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(available, "capability", lambda: (9, 0))
    monkeypatch.setattr(available.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ValueError, match=r"install nvfp4_jax\[cuda\]"):
        select.select("triton")


def test_a_name_does_what_it_says_or_says_why_not(monkeypatch):
    monkeypatch.setattr(available, "capability", lambda: (9, 0))
    mxfp4 = LinearPrecision(fprop=nvfp4.Gemm(input=Quantizer("mxfp4"), weight=Quantizer()))
    with pytest.raises(ValueError, match=r"'triton': .* for nvfp4, not mxfp4; leave .* out"):
        nvfp4.make_dot_general(mxfp4, implementation="triton")
    with pytest.raises(ValueError, match=r"rotate 16 elements, not 64"):
        nvfp4.quantize(jnp.ones((64, 64)), Quantizer(rht=64), key=KEY, implementation="triton")
    assert callable(nvfp4.make_dot_general(mxfp4))


def test_the_fallback_of_a_quantizer_is_told(monkeypatch):
    monkeypatch.setattr(available, "capability", lambda: (9, 0))
    assert select.fallback(Quantizer()) is None
    assert "for nvfp4, not mxfp4" in str(select.fallback(Quantizer("mxfp4")))
    assert "rotate 16 elements, not 32" in str(select.fallback(Quantizer(rht=32)))

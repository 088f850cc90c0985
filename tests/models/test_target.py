"""Which implementation runs, and what is said where the one asked for cannot."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from nvfp4_jax.kernels import available, capability, xla
from nvfp4_jax.models import target
from nvfp4_jax.models.attention import attend
from nvfp4_jax.models.conv import conv_silu
from nvfp4_jax.models.norm import rms_norm

X = jnp.zeros((1, 4, 8))


def unexpected() -> str | None:
    raise AssertionError("no kernel is asked where there is no GPU for it")


def test_plain_xla_on_a_cpu():
    assert target.capability() is None
    assert target.choose(None, unexpected, "norm") == "xla"
    assert target.choose("xla", unexpected, "norm") == "xla"


def test_the_models_know_the_gpus_that_the_kernels_know():
    """Two tables, since models import nothing of the library; they must not part."""
    assert target._BY_NAME == capability._KNOWN


@pytest.mark.parametrize("found", [(8, 0), (8, 9), (9, 0), (10, 0), (10, 3)])
def test_the_kernel_where_it_can_run(found, monkeypatch):
    monkeypatch.setattr(target, "capability", lambda: found)
    assert target.choose(None, lambda: None, "norm") == "triton"
    assert target.choose("triton", lambda: None, "norm") == "triton"
    assert target.choose(None, lambda: "too wide", "norm") == "xla"
    with pytest.raises(ValueError, match="cannot run: too wide"):
        target.choose("triton", lambda: "too wide", "norm")


@pytest.mark.parametrize("found", [(7, 5), (12, 0)])
def test_other_gpus_take_xla(found, monkeypatch):
    monkeypatch.setattr(target, "capability", lambda: found)
    assert target.choose(None, unexpected, "norm") == "xla"


@pytest.fixture
def nothing_said_yet(caplog):
    """What was said before, by other tests, is forgotten, before and after."""
    said = target._say_once, available._say_once
    for one in said:
        one.cache_clear()
    yield caplog
    for one in said:
        one.cache_clear()


def test_what_falls_back_on_a_gpu_is_said_once(nothing_said_yet, monkeypatch):
    monkeypatch.setattr(target, "capability", lambda: (7, 5))
    for what in ("norm", "norm", "convolution"):
        assert target.choose(None, unexpected, what) == "xla"
    monkeypatch.setattr(target, "capability", lambda: (9, 0))
    target.choose(None, lambda: "too wide", "norm")
    cannot = "in plain XLA: the Triton kernel cannot run:"
    old = "it is for capability 8.0 to 10.x (Ampere to Blackwell), not (7, 5)"
    assert nothing_said_yet.messages == [
        f"norm {cannot} {old}",
        f"convolution {cannot} {old}",
        f"norm {cannot} too wide",
    ]


def test_what_was_asked_for_or_is_no_fallback_is_not_said(nothing_said_yet, monkeypatch):
    target.choose(None, unexpected, "norm")  # no GPU
    monkeypatch.setattr(target, "capability", lambda: (9, 0))
    target.choose(None, lambda: None, "norm")
    target.choose("xla", lambda: "too wide", "norm")
    with target.plain_operations():
        target.choose(None, unexpected, "norm")
    assert nothing_said_yet.messages == []


def test_quantizers_that_fall_back_on_a_gpu_say_so_once(nothing_said_yet, monkeypatch):
    assert available.quantizing() is xla  # a CPU
    assert nothing_said_yet.messages == []
    monkeypatch.setattr(available, "capability", lambda: (7, 5))
    for _ in range(2):
        assert available.quantizing() is xla
    (said,) = nothing_said_yet.messages
    assert said.startswith("quantizing in plain XLA: triton is for compute capability 8.0 to 10.x")


@pytest.mark.parametrize(
    "call",
    [
        lambda: conv_silu(X, jnp.ones((4, 8)), jnp.ones(8), widths=(8,), implementation="triton"),
        lambda: rms_norm(X, jnp.ones(8), eps=1e-5, implementation="triton"),
        lambda: attend(X[:, :, None], X[:, :, None], X[:, :, None], implementation="triton"),
    ],
)
def test_a_kernel_that_cannot_run_says_why(call):
    with pytest.raises(ValueError, match=r"8.0 to 10.x \(Ampere to Blackwell\)"):
        call()


def test_an_unknown_name():
    with pytest.raises(ValueError, match="'pallas'"):
        rms_norm(X, jnp.ones(8), eps=1e-5, implementation="pallas")  # pyright: ignore


def test_columns_that_do_not_fit():
    with pytest.raises(ValueError, match="do not cut 6 channels"):
        conv_silu(X, jnp.ones((4, 6)), jnp.ones(6), widths=(4, 1))
    with pytest.raises(ValueError, match="do not cut 8 channels"):
        conv_silu(X, jnp.ones((4, 8)), jnp.ones(8), start=2, widths=(8,))


def test_cudnn_knows_no_documents():
    q = jnp.zeros((1, 4, 1, 8), jnp.bfloat16)
    with pytest.raises(ValueError, match=r"length\^2"):
        attend(q, q, q, jnp.zeros((1, 4), jnp.int32), implementation="cudnn")


def test_products_are_rounded_alone_where_plain_operations_are_asked_for():
    """Forward and backward; else they may be fused with the sum that reads them."""

    def barriers():  # a new function each time, or its trace is found again
        slope = jax.grad(lambda x: jnp.sum(target.rounded(x) * 3 + 1))
        return str(jax.make_jaxpr(lambda x: slope(x))(X)).count("optimization_barrier")

    assert barriers() == 0
    with target.plain_operations():
        assert barriers() == 2

"""A linear on Blackwells that are not here, split over four: what runs, and what travels."""

from __future__ import annotations

import re
from functools import cache

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from nvfp4_jax.compile_for import compile_for, mesh_of
from tests.gemm.precisions import PAPER
from tests.gpu_compile import in_process_of
from tests.sharding.test_fused import linear


@cache
def lines() -> list[str]:
    return in_process_of("b200", compiled_text).splitlines()


def compiled_text() -> str:
    """Batch over all devices, the FP32 weight and its gradient over `fsdp`."""
    mesh = mesh_of("b200", {"data": 2, "fsdp": 2})

    def on(shape, dtype, *spec):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, P(*spec)))

    rows, weight = (("data", "fsdp"),), ("fsdp",)
    compiled = compile_for(
        mesh,
        linear(PAPER, None),
        on((2048, 512), jnp.bfloat16, *rows),
        on((512, 768), jnp.float32, *weight),
        on((2048, 768), jnp.bfloat16, *rows),
        out_shardings=tuple(NamedSharding(mesh, P(*spec)) for spec in (rows, rows, weight)),
    )
    return str(compiled.as_text())


def named(opcode: str) -> list[str]:
    return [line for line in lines() if re.search(rf" {opcode}(-start)?\(", line)]


def test_every_product_is_on_codes():
    calls = [line for line in named("custom-call") if "block_scaled_matmul" in line]
    gemms = [match[1] for line in calls if (match := re.search(r"linear\[.*?:(\w+)\]", line))]
    assert sorted(gemms) == ["dgrad", "fprop", "wgrad"]
    assert not named("dot")


def test_weights_are_gathered_as_codes_and_scales():
    gathered = [re.search(r"= \(?(\w+)\[([\d,]+)\]", line) for line in named("all-gather")]
    assert {match[1] for match in gathered if match} <= {"u8", "f8e4m3fn"}
    assert gathered


def test_sums_over_tokens_travel_in_fp32():
    reduced = named("all-reduce") + named("reduce-scatter")
    types = {match[1] for line in reduced if (match := re.search(r"= \(?(\w+)\[", line))}
    assert types <= {"f32", "s32"}  # s32: bits of the largest magnitudes
    assert any("f32[" in line for line in reduced)

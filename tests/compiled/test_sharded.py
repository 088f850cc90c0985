"""A layer split over eight GPUs: what is proven of one device's program, collectives and all."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from nvfp4_jax.compile_for import compile_for, mesh_of
from nvfp4_jax.compiled.proof import Proof, prove
from nvfp4_jax.precision import GEMMS
from tests.compiled.linear import NAME, layer, problems
from tests.gemm.precisions import PAPER
from tests.gpu_compile import in_process_of

TOKENS, FEATURES, OUT = 2048, 512, 1024


def sharded(gpu: str) -> Proof:
    """Tokens over `data` and `fsdp`, the weight over `fsdp` and `tensor`."""
    mesh = mesh_of(gpu, {"data": 2, "fsdp": 2, "tensor": 2})

    def on(shape, dtype, *spec):
        layout = NamedSharding(mesh, PartitionSpec(*spec))
        return jax.ShapeDtypeStruct(shape, dtype, sharding=layout)

    tokens = ("data", "fsdp")
    arguments = (
        on((TOKENS, FEATURES), jnp.bfloat16, tokens),
        on((FEATURES, OUT), jnp.float32, "fsdp", "tensor"),
        on((TOKENS, OUT), jnp.bfloat16, tokens, "tensor"),
        on((2,), jnp.uint32),
    )
    out = (None, None, NamedSharding(mesh, PartitionSpec("fsdp", "tensor")))
    text = compile_for(mesh, partial(layer, PAPER, None), *arguments, out_shardings=out).as_text()
    assert text is not None
    return prove(text, [(NAME, PAPER)])


@pytest.mark.parametrize(("gpu", "kind"), [("h100", "emulated"), ("b200", "native")])
def test_every_gemm_of_every_shard_is_rounded(gpu, kind):
    found = in_process_of(gpu, sharded, gpu)
    assert problems(found) == {}
    assert {g.gemm: g.format for g in found.gemms} == dict.fromkeys(GEMMS, f"nvfp4 {kind}")
    whole = 2 * TOKENS * FEATURES * OUT
    assert all(g.flops is not None and g.flops >= whole / 8 for g in found.gemms)

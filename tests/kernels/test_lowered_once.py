"""A Mosaic kernel that is called often is lowered once, also among modules of their own."""

import re

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from nvfp4_jax.compile_for import compile_for, mesh_of
from nvfp4_jax.kernels import lowered_once, scaled_product


def test_calls_in_several_modules_share_one_lowering_and_are_one_kernel_to_xla():
    """Each call under a mesh is lowered in a module of its own (`custom_partitioning`)."""
    lowered_once._exported.cache_clear()
    mesh = mesh_of("h100", {"data": 2})
    rows = NamedSharding(mesh, PartitionSpec("data"))
    x = jax.ShapeDtypeStruct((2**14, 2048), jnp.bfloat16, sharding=rows)
    weight, scale = (jax.ShapeDtypeStruct(s, d) for s, d in (((2048, 2048), x.dtype), ((), "f4")))

    def layers(x, weights, scale):
        for weight in weights:
            x = scaled_product.scaled_product(x, weight, (1, 0), (scale,), jnp.bfloat16)
        return x

    text = compile_for(mesh, layers, x, [weight] * 3, scale).as_text() or ""
    assert text.count('custom_call_target="mosaic_gpu_v2"') == 3
    assert len(set(re.findall(r'kernel_hash = "[^"]*"', text))) == 1
    assert lowered_once._exported.cache_info().misses == 1

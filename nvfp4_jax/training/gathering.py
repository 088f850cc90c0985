"""The two largest weights on a mesh, embedding and head, by hand.

Both have a row or a column for each word, and both are used by every device for its own tokens
alone. Left to the compiler they are gathered, and their gradients added up, whole and in FP32: for
131,072 words of width 5120, 2.7 GB each. By hand, inside `shard_map`:

    head        parts are gathered as they are multiplied, in bf16; gradients are added up in FP32
                and scattered at once
    embedding   is cut by columns: the tokens travel to the columns, and the columns' values back
"""

from __future__ import annotations

import functools
from typing import Any

import jax
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from nvfp4_jax.training.sharding import parameter_sharding, sharding


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def whole(part: jax.Array, spec: PartitionSpec, dtype: Any) -> jax.Array:
    """Inside `shard_map`: the array of which this is a part, rounded to `dtype` on its way.

    The values come back in the dtype of the part, so that the gradient is not rounded: it is summed
    in that dtype over the devices that share the array, and each keeps its part of the sum.

    Args:
      part: of the array, as `spec` cuts it.
      spec: which mesh axes each axis is cut over.
      dtype: what travels.
    """
    array = part.astype(dtype)
    for axis, names in enumerate(spec):
        if names:
            array = lax.all_gather(array, names, axis=axis, tiled=True)
    return array.astype(part.dtype)


def _forward(part: jax.Array, spec: PartitionSpec, dtype: Any):
    return whole(part, spec, dtype), None


def _backward(spec: PartitionSpec, dtype: Any, _: None, slope: jax.Array):
    for axis, names in enumerate(spec):
        if names:
            slope = lax.psum_scatter(slope, names, scatter_dimension=axis, tiled=True)
    return (slope,)


whole.defvjp(_forward, _backward)


def embed(table: jax.Array, tokens: jax.Array, dtype: Any, mesh: Mesh) -> jax.Array:
    """table[tokens] in `dtype`, each device with its own tokens; the gradient is summed in FP32.

    Args:
      table: (vocabulary, hidden), cut as the table of `sharding` says.
      tokens: (batch, length).
      dtype: of the result.
      mesh: the training mesh.

    Returns:
      (batch, length, hidden).
    """
    stored = parameter_sharding(mesh, "embedding/weight", table.shape).spec
    words, columns = (*stored, None, None)[:2]

    def local(table: jax.Array, tokens: jax.Array) -> jax.Array:
        table = whole(table, PartitionSpec(words), dtype)
        if columns is None:
            return table[tokens].astype(dtype)
        asked = lax.all_gather(tokens, "fsdp", axis=0, tiled=True)
        found = table[asked].astype(dtype)
        return lax.all_to_all(found, "fsdp", split_axis=0, concat_axis=2, tiled=True)

    return jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(stored, sharding(mesh, "batch", "between").spec),
        out_specs=sharding(mesh, "batch", "between", "hidden").spec,
        check_vma=False,
    )(table, tokens)

"""A Mosaic kernel, lowered once and called often.

JAX lowers a kernel anew for every module in which it is called, and each shard's function of a
`custom_partitioning` is a module of its own. For a Mosaic kernel that takes a second, and XLA needs
half of one to compile what it takes for another kernel; a deep model calls a dozen different ones
hundreds of times. Here the kernel is a primitive whose lowering for GPUs is *exported*, kept for
the process, and called. XLA sees the same text every time and compiles it once.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import jax
from jax import export
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import mlir
from jaxtyping import Array

# Export promises that what it keeps can be read years later, and cannot promise it of this call.
# Nothing is kept longer than the process.
_UNPROMISED = (export.DisabledSafetyCheck.custom_call("mosaic_gpu_v2"),)
_kernel = Primitive("lowered_once")


def lowered_once(
    kernel: Callable[..., Array], out: jax.ShapeDtypeStruct, *arguments: Array
) -> Array:
    """`kernel(*arguments)`.

    Args:
      kernel: a Pallas kernel of Mosaic GPU; the same object (hash and equality) wherever it is the
        same kernel.
      out: shape and dtype of its result.
      *arguments: arrays.
    """
    return _kernel.bind(*arguments, kernel=kernel, out=out)


def _lowering(context: mlir.LoweringRuleContext, *values, kernel, out):
    shapes = tuple((aval.shape, aval.dtype) for aval in context.avals_in)  # pyright: ignore
    call = _exported(kernel, shapes).call
    return mlir.lower_fun(call, multiple_results=False)(context, *values)


@cache
def _exported(kernel: Callable[..., Array], shapes: tuple) -> export.Exported:
    arguments = [jax.ShapeDtypeStruct(*shape) for shape in shapes]
    compiled = export.export(jax.jit(kernel), platforms=["cuda"], disabled_checks=_UNPROMISED)
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), ())):  # it is of one device
        return compiled(*arguments)


_kernel.def_abstract_eval(lambda *_, kernel, out: ShapedArray(out.shape, out.dtype))
_kernel.def_impl(lambda *arrays, kernel, out: jax.jit(kernel)(*arrays))
mlir.register_lowering(_kernel, _lowering, platform="cuda")

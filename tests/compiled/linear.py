"""One linear layer, forward and backward, compiled for a GPU by name or for this machine's CPU."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

import nvfp4_jax as nvfp4
from nvfp4_jax import LinearPrecision
from nvfp4_jax.compile_for import compile_for, mesh_of
from nvfp4_jax.compiled.proof import Proof, prove
from tests.gpu_compile import in_process_of

NAME = "blocks_3/mlp/up"
NUMBERS = (((1,), (0,)), ((), ()))


def layer(precision: LinearPrecision, implementation: str | None, x, w, dy, key):
    """y, dx and dw."""
    raw = jax.random.wrap_key_data(key)
    dot = nvfp4.make_dot_general(precision, raw, implementation, name=NAME)
    y, pull = jax.vjp(lambda x, w: dot(x, w, NUMBERS), x, w)
    return (y, *pull(dy))


def compiled(
    gpu: str | None,
    precision: LinearPrecision,
    shape: tuple[int, int, int] = (512, 256, 384),
    implementation: str | None = None,
) -> str:
    """The text of the program; `shape` is tokens, features in, features out."""
    if gpu == "b200":
        return in_process_of(gpu, compiled_here, gpu, precision, shape, implementation)
    return compiled_here(gpu, precision, shape, implementation)


def compiled_here(
    gpu: str | None,
    precision: LinearPrecision,
    shape: tuple[int, int, int],
    implementation: str | None = None,
) -> str:
    """The same, in this process."""
    tokens, features, out = shape
    arguments = (
        jax.ShapeDtypeStruct((tokens, features), jnp.bfloat16),
        jax.ShapeDtypeStruct((features, out), jnp.float32),
        jax.ShapeDtypeStruct((tokens, out), jnp.bfloat16),
        jax.ShapeDtypeStruct((2,), jnp.uint32),
    )
    run = partial(layer, precision, implementation)
    if gpu is None:
        text = jax.jit(run).lower(*arguments).compile().as_text()
    else:
        text = compile_for(mesh_of(gpu), run, *arguments).as_text()
    assert text is not None
    return text


def proof(
    gpu: str | None,
    precision: LinearPrecision,
    shape: tuple[int, int, int] = (512, 256, 384),
    **options,
) -> Proof:
    """Of the layer compiled under `precision`, held against it."""
    return prove(compiled(gpu, precision, shape), [(NAME, precision)], **options)


def problems(found: Proof) -> dict[str, str]:
    """GEMM -> what is wrong with it."""
    return {gemm.gemm: gemm.problem for gemm in found.fallbacks if gemm.problem}

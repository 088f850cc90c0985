"""Sums in one order on GPUs: what multiplies, adds up or runs as a kernel there, device by device.

The same bits on any mesh rest on every device running the same code for a piece. So one GPU's
program must have every product, reduction and kernel of a program for four, of the same sizes and
layouts and with the same arguments to the library; and products must be nobody's but the library's.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import jax
import pytest
from flax import nnx

from nvfp4_jax.compile_for import compile_for, mesh_of
from nvfp4_jax.compiled import hlo
from nvfp4_jax.compiled.proof import prove
from nvfp4_jax.models import HybridConfig
from nvfp4_jax.recipe import load_recipe
from nvfp4_jax.training.binding import Table, precision_table
from nvfp4_jax.training.exact import ORDERED
from nvfp4_jax.training.mesh import make_mesh, parse_mesh
from nvfp4_jax.training.optimizer import adamw, learning_rate_schedule
from nvfp4_jax.training.proof import batch_shapes
from nvfp4_jax.training.sharding import placed_shapes, sharding, state_shardings
from nvfp4_jax.training.state import abstract_model, initial_state
from nvfp4_jax.training.step import Program, make_step

MODEL = HybridConfig(
    pattern="M*-",
    hidden=64,
    vocabulary=256,
    ffn=128,
    attention_heads=4,
    kv_heads=2,
    head_dim=16,
    mamba_heads=8,
    mamba_head_dim=16,
    state=16,
    groups=2,
    chunk=16,
)
SUMS = ("reduce", "dot", "convolution", "scatter", "sort")
BETWEEN = "jit(step)/reduce_sum"  # of gradients, for their norm; of the mask, in any order


def compiled(name: str, recipe: str = "bf16") -> tuple[str, Table]:
    """(text of a step on a mesh of H200s, the precisions it is to have)."""
    shape = parse_mesh(name)
    mesh = make_mesh(shape, list(mesh_of("h200", {"data": shape.size}).devices.flat))
    model = abstract_model(MODEL)
    table = precision_table(load_recipe(recipe).at(0, 100), model, MODEL.num_blocks)
    program = Program(MODEL, nnx.graphdef(model), mesh=mesh, sum_parts=2, feature_parts=2)
    shapes = jax.eval_shape(lambda: initial_state(MODEL, adamw(), 0))
    layouts = state_shardings(mesh, shapes)
    key = jax.ShapeDtypeStruct((), jax.random.key(0).dtype, sharding=sharding(mesh))
    text = compile_for(
        mesh,
        make_step(program, table, adamw(), learning_rate_schedule(1e-3, 100, 5, 0.2)),
        placed_shapes(shapes, layouts),
        batch_shapes(mesh, 1, 4, 64),
        key,
        donate_argnums=0,
        out_shardings=(layouts, sharding(mesh)),
        compiler_options=ORDERED,
    ).as_text()
    assert text is not None
    return text, table


def computing(name: str) -> set[tuple[str, ...]]:
    """Every call of a library or a kernel, with sizes and arguments; every sum, with its sizes."""
    program = hlo.parse(compiled(name)[0])
    return {told for i in program.instructions.values() for told in _told(program, i)}


def _told(program: hlo.Program, one: hlo.Instruction) -> Iterator[tuple[str, ...]]:
    operands = [program.instructions[one.computation, name].type for name in one.operands]
    if one.target in ("__cublas$lt$matmul", "__cublas$gemm"):
        config = re.sub(r'"operation_queue_id":"\d+"', "", one.config)
        yield (one.target, one.type, *operands, config)
    elif one.target == "triton_kernel_call":
        yield (one.target, one.type, *operands, one.op_name.rpartition("/")[2])
    elif one.opcode in SUMS and one.type.startswith("f32") and one.op_name != BETWEEN:
        yield (one.opcode, one.type, *operands)
    elif one.opcode == "fusion" and one.op_name == BETWEEN:
        read = [_before_it_is_flat(program, one.computation, name) for name in one.operands]
        yield from (("norm", array) for array in read if array.startswith("f32"))


def _before_it_is_flat(program: hlo.Program, computation: str, name: str) -> str:
    """The type of the array that is read here as a vector: in memory it is as the array is."""
    one = program.instructions[computation, name]
    return _before_it_is_flat(program, computation, one.operands[0]) if _is_view(one) else one.type


def _is_view(one: hlo.Instruction) -> bool:
    return one.opcode in ("bitcast", "optimization-barrier") and len(one.arrays) == 1


@pytest.fixture(scope="module")
def alone() -> set[tuple[str, ...]]:
    """What one GPU computes."""
    return computing("data=1")


def test_every_gpu_computes_pieces_as_one_gpu_does(alone):
    there = computing("data=2,tensor=2")
    assert sorted(there - alone) == []
    assert sorted(alone - there) == []
    kinds = [kind for kind, *_ in alone]
    assert kinds.count("__cublas$lt$matmul") >= 8
    assert kinds.count("triton_kernel_call") >= 8
    assert "dot" not in kinds
    assert kinds.count("norm") >= 8


def test_the_recipe_is_found_in_pieces():
    """That pieces are joined again is no sign of products that XLA merged."""
    proof = prove(*compiled("tensor=2", "nvfp4"))
    assert [(g.layer, g.gemm, g.problem) for g in proof.fallbacks] == []
    assert {"nvfp4 emulated", "bf16"} == {g.format for g in proof.gemms}

"""Reading a program's text, on a text small enough to check by eye."""

from __future__ import annotations

import pytest

from nvfp4_jax.compiled.flow import Value, origins
from nvfp4_jax.compiled.hlo import parse
from nvfp4_jax.compiled.products import products
from nvfp4_jax.compiled.roundings import read
from nvfp4_jax.scopes import Place, expanded, joined, place_of

LOOP = """\
HloModule example, is_scheduled=true

%fused (p0: f32[8,4], p1: f32[4,2]) -> f32[8,2] {
  %p0 = f32[8,4]{1,0} parameter(0)
  %p1 = f32[4,2]{1,0} parameter(1)
  ROOT %dot.1 = f32[8,2]{1,0} dot(%p0, %p1), lhs_contracting_dims={1}, rhs_contracting_dims={0}, \
metadata={op_name="jit(f)/while/body/transpose(jvp(linear[blocks_1:5:2/mlp/up:dgrad]))/dot"}
}

%body (arg: (s32[], f32[8,4], f32[4,2], f32[8,2])) -> (s32[], f32[8,4], f32[4,2], f32[8,2]) {
  %arg = (s32[], f32[8,4]{1,0}, f32[4,2]{1,0}, f32[8,2]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%arg), index=0
  %x = f32[8,4]{1,0} get-tuple-element(%arg), index=1
  %w = f32[4,2]{1,0} get-tuple-element(%arg), index=2
  %y = f32[8,2]{1,0} fusion(%x, %w), kind=kLoop, calls=%fused
  ROOT %out = (s32[], f32[8,4]{1,0}, f32[4,2]{1,0}, /*index=3*/f32[8,2]{1,0}) tuple(%i, %x, %w, %y)
}

%condition (arg.1: (s32[], f32[8,4], f32[4,2], f32[8,2])) -> pred[] {
  %arg.1 = (s32[], f32[8,4]{1,0}, f32[4,2]{1,0}, f32[8,2]{1,0}) parameter(0)
  ROOT %less = pred[] constant(true)
}

ENTRY %main (a: f32[8,4], b: f32[4,2]) -> f32[8,2] {
  %a = f32[8,4]{1,0} parameter(0)
  %b = f32[4,2]{1,0} parameter(1)
  %zero = s32[] constant(0)
  %start = f32[8,2]{1,0} constant({...})
  %in = (s32[], f32[8,4]{1,0}, f32[4,2]{1,0}, f32[8,2]{1,0}) tuple(%zero, %a, %b, %start)
  %loop = (s32[], f32[8,4]{1,0}, f32[4,2]{1,0}, f32[8,2]{1,0}) while(%in), condition=%condition, \
body=%body, backend_config={"known_trip_count":{"n":"5"},"known_init_step":{"init":"0","step":"1"}}
  ROOT %result = f32[8,2]{1,0} get-tuple-element(%loop), index=3
}
"""


def test_a_product_in_a_loop_counts_as_often_as_it_runs():
    (product,) = products(parse(LOOP))
    assert product.place == Place("blocks_1:5:2/mlp/up", "dgrad", None)
    assert (product.executor, product.runs) == ("XLA dot f32", 5)
    assert product.flops == 5 * 2 * 8 * 2 * 4


NAMELESS = """\
HloModule example, is_scheduled=true

ENTRY %main (a: bf16[8,4], b: bf16[4,2]) -> f32[8,2] {
  %a = bf16[8,4]{1,0} parameter(0)
  %b = bf16[4,2]{1,0} parameter(1)
  %x = f32[8,4]{1,0} convert(%a), metadata={op_name="jit(f)/linear[head:dgrad]/convert"}
  %w = f32[4,2]{1,0} convert(%b), metadata={op_name="jit(f)/linear[head:GEMM]/quantize[weight]/c"}
  ROOT %dot.1 = f32[8,2]{1,0} dot(%x, %w), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}
"""


def test_a_product_without_a_name_belongs_where_both_its_operands_do():
    (product,) = products(parse(NAMELESS.replace("GEMM", "dgrad")))
    assert product.place == Place("head", "dgrad", None)
    (product,) = products(parse(NAMELESS.replace("GEMM", "fprop")))
    assert product.place is None


def test_a_value_is_followed_out_of_a_fusion_and_round_a_loop():
    program = parse(LOOP)
    value = Value("fused", "p1")
    seen = []
    while value not in seen:
        seen.append(value)
        value = (origins(program, value) or [value])[0]
    assert value == Value("main", "b")
    assert origins(program, Value("main", "result")) == [Value("main", "loop", (3,))]


def test_what_comes_in_as_it_is_is_told():
    program = parse(LOOP)
    (product,) = products(program)
    assert [read(program, *o).unrounded for o in product.operands] == [
        ["parameter a"],
        ["parameter b"],
    ]


def test_loops_of_unknown_length_are_told():
    text = LOOP.replace('"known_trip_count":{"n":"5"},', "")
    assert parse(LOOP).loops_of_unknown_length() == []
    assert parse(text).loops_of_unknown_length() == ["loop"]


def test_a_text_that_is_no_program():
    with pytest.raises(ValueError, match="no ENTRY computation"):
        parse("HloModule nothing")


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("jit(f)/transpose(jvp(linear[head:wgrad]))/dot_general", Place("head", "wgrad", None)),
        ("jit(f)/linear[a/b:fprop]/quantize[input]/mul", Place("a/b", "fprop", "input")),
        ("jit(f)/linear[a:fprop]/quantize[input]/linear[b:dgrad]/dot", Place("b", "dgrad", None)),
        ("jit(f)/while/body/mul", None),
        ("", None),
    ],
)
def test_places(name, place):
    assert place_of(name) == place


def test_names_of_layers_that_are_traced_as_one():
    paths = [f"blocks_{i}/mlp/up" for i in (4, 13, 22)]
    assert joined(paths) == "blocks_4:31:9/mlp/up"
    assert expanded(joined(paths)) == tuple(paths)
    assert joined(["head"]) == "head"
    assert expanded("head") == ("head",)
    with pytest.raises(ValueError, match="even steps"):
        joined(["blocks_1/mlp/up", "blocks_2/mlp/up", "blocks_4/mlp/up"])

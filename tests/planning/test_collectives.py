"""Collectives as XLA writes them, and which devices meet in them."""

from __future__ import annotations

import numpy as np
import pytest

from nvfp4_jax.compiled.hlo import parse
from nvfp4_jax.planning.collectives import collectives
from nvfp4_jax.planning.groups import axes_of, parse_groups, together

SIZES = {"data": 2, "fsdp": 2, "sequence": 1, "tensor": 2}


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("{{0,1},{2,3}}, dimensions={0}", [[0, 1], [2, 3]]),
        ("{}, to_apply=%add", [[0, 1, 2, 3, 4, 5, 6, 7]]),
        ("[4,2]<=[8], dimensions={1}", [[0, 1], [2, 3], [4, 5], [6, 7]]),
        ("[4,2]<=[2,2,2]T(1,2,0)", [[0, 4], [1, 5], [2, 6], [3, 7]]),
        ("mesh['a'=2,'b'=2,'c'=2] {'b'}", [[0, 2], [1, 3], [4, 6], [5, 7]]),
        ("mesh['a'=2,'b'=2] {'a','b'}", [[0, 1, 2, 3]]),
        ("mesh['a'=2,'b'=4] {'b':(1)2}", [[0, 2], [1, 3], [4, 6], [5, 7]]),
        ("mesh['a'=2,'b'=4] {'b':(2)2}", [[0, 1], [2, 3], [4, 5], [6, 7]]),
    ],
)
def test_groups_are_read(text: str, groups: list[list[int]]):
    np.testing.assert_array_equal(parse_groups(text, 8), groups)


def test_an_unknown_form_of_groups_is_not_guessed():
    with pytest.raises(ValueError, match="not a form of groups"):
        parse_groups("<2 x 4>", 8)


@pytest.mark.parametrize("axis", ["data", "fsdp", "tensor"])
def test_axes_follow_from_the_groups(axis: str):
    places = np.arange(8).reshape(tuple(SIZES.values()))
    groups = np.moveaxis(places, list(SIZES).index(axis), -1).reshape(-1, 2)
    assert axes_of(groups, SIZES) == (axis,)
    assert axes_of(np.arange(8)[None], SIZES) == ("data", "fsdp", "tensor")


def test_neighbours_are_counted_where_they_are_fewest():
    assert together(np.array([[0, 1, 2, 3]]), domain=2) == 2
    assert together(np.array([[0, 2], [4, 6]]), domain=4) == 2
    assert together(np.array([[0, 4]]), domain=4) == 1


PROGRAM = """\
HloModule jit_f, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%body (p: (s32[], bf16[64,32])) -> (s32[], bf16[64,32]) {
  %p = (s32[], bf16[64,32]{1,0}) parameter(0)
  %n = s32[] get-tuple-element(%p), index=0
  %w = bf16[64,32]{1,0} get-tuple-element(%p), index=1
  %start = ((bf16[64,32]{1,0}), bf16[128,32]{1,0}) all-gather-start(%w), channel_id=1, \
replica_groups=[4,2]<=[2,2,2]T(0,2,1), dimensions={0}, metadata={op_name="gather"}
  %done = bf16[128,32]{1,0} all-gather-done(%start)
  %part = bf16[64,32]{1,0} slice(%done), slice={[0:64], [0:32]}
  ROOT %t = (s32[], bf16[64,32]{1,0}) tuple(%n, %part)
}

%condition (p: (s32[], bf16[64,32])) -> pred[] {
  %p = (s32[], bf16[64,32]{1,0}) parameter(0)
  ROOT %true = pred[] constant(true)
}

ENTRY %main (x: (s32[], bf16[64,32]), g: f32[256]) -> f32[256] {
  %x = (s32[], bf16[64,32]{1,0}) parameter(0)
  %g = f32[256]{0} parameter(1)
  %loop = (s32[], bf16[64,32]{1,0}) while(%x), condition=%condition, body=%body, \
backend_config={"known_trip_count":{"n":"5"}}
  %alone = f32[256]{0} all-reduce(%g), replica_groups=[8,1]<=[8], to_apply=%add
  %send = f32[256]{0} collective-permute(%alone), source_target_pairs={{0,1},{1,0},{2,3},{3,2}}
  ROOT %r = f32[256]{0} all-reduce(%send), replica_groups={{0,4},{1,5},{2,6},{3,7}}, to_apply=%add
}
"""


def test_collectives_are_counted_with_the_loops_they_are_in():
    gather, permute, reduce = collectives(parse(PROGRAM), SIZES, domain=4)
    assert (gather.kind, gather.axes, gather.dtype, gather.runs) == (
        "all-gather", ("fsdp",), "bf16", 5,
    )  # fmt: skip
    assert gather.sent == 64 * 32 * 2
    assert gather.in_domain == gather.group == 2
    assert (permute.kind, permute.axes, permute.sent) == ("collective-permute", ("tensor",), 1024)
    assert (reduce.kind, reduce.axes, reduce.sent) == ("all-reduce", ("data",), 2 * 1024 / 2)
    assert reduce.in_domain == 1  # one a host: it goes over the network

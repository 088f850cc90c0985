"""Which blocks a rule by block selects."""

from __future__ import annotations

from decimal import ROUND_HALF_UP, Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvfp4_jax.recipe.blocks import Blocks, block_index, count_blocks, round_half_up


def selected(blocks: Blocks, count: int) -> list[int]:
    return [index for index in range(count) if blocks.contains(index, count)]


@pytest.mark.parametrize(
    ("fraction", "count", "rounded"),
    [
        (0.15, 62, 9),  # 9.3
        (0.15, 52, 8),  # 7.8: the 8B keeps its last 8
        (0.15, 10, 2),  # 1.5, up; to even it would be 2 as well
        (0.15, 30, 5),  # 4.5, up; to even it would be 4
        (0.35, 10, 4),  # 3.5; the float 0.35 is below it
        (0.15, 3, 0),
        (0.5, 1, 1),
        (1.0, 7, 7),
    ],
)
def test_halves_round_up(fraction, count, rounded):
    assert round_half_up(fraction, count) == rounded


@given(st.integers(1, 1000), st.integers(1, 200))
def test_rounding_is_that_of_decimals(thousandths, count):
    exact = Decimal(thousandths) / 1000 * count
    expected = int(exact.quantize(Decimal(1), ROUND_HALF_UP))
    assert round_half_up(thousandths / 1000, count) == expected


def test_any_of_several_selects():
    blocks = Blocks(first=2, last=3, index=(0, 5))
    assert selected(blocks, 12) == [0, 1, 5, 9, 10, 11]
    assert selected(Blocks(last=1, last_fraction=0.25), 12) == [9, 10, 11]
    assert selected(Blocks(first=2, last=8), 62) == [0, 1, *range(54, 62)]


def test_overlap_selects_all():
    assert selected(Blocks(first=3, last=3), 4) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("path", "index"),
    [
        ("blocks_7/mlp/up", 7),
        ("stage_1/blocks_3/mlp/up", 1),  # the first name_N
        ("my_blocks_12/wi_0", 12),
        ("head", None),
        ("blocks/mlp/up", None),
        ("blocks7/up", None),
        ("mlp2/fc1", None),
    ],
)
def test_the_index_is_the_number_in_the_first_numbered_name(path, index):
    assert block_index(path) == index


def test_blocks_are_counted_from_paths():
    assert count_blocks(["blocks_0/a", "blocks_11/a", "head"]) == 12
    assert count_blocks(["head"]) is None


def test_it_is_written_as_in_a_recipe():
    assert str(Blocks(first=2, last=8)) == "{ first = 2, last = 8 }"
    assert str(Blocks(last_fraction=0.15, index=(0, 61))) == (
        "{ last_fraction = 0.15, index = [0, 61] }"
    )

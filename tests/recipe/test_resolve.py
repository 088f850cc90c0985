"""Rules in order, and the rules held against a model."""

from __future__ import annotations

import pytest

from nvfp4_jax import LinearPrecision
from nvfp4_jax.recipe import Recipe, RecipeError, load_recipe

from .malformed import HEAD
from .trees import mlps

BF16 = LinearPrecision()
REST = '[[rule]]\nmatch = "**"\nprecision = "bf16"\n'


def recipe(*rules: str, rest: str = REST) -> Recipe:
    """A recipe of rules, each in `low` unless it says otherwise; the first is headed on line 4."""
    texts = [text if "precision" in text else f'{text}\nprecision = "low"' for text in rules]
    return Recipe.from_text(HEAD + "".join(f"[[rule]]\n{t}\n" for t in texts) + rest, "test")


def test_the_first_match_wins_and_says_so():
    both = recipe('match = "**/up"\nprecision = "bf16"', 'match = "blocks_*/**"')
    up, down = both.resolve("blocks_3/mlp/up"), both.resolve("blocks_3/mlp/down")
    assert (up.precision, up.precision_name, up.rule) == (BF16, "bf16", 1)
    assert up.reason == 'rule 1 (line 4): match = "**/up"'
    assert (down.precision, down.rule) == (both.precision["low"], 2)
    assert down.reason == 'rule 2 (line 7): match = "blocks_*/**"'
    assert both.resolve("head").rule == 3


def test_precedence_is_by_order_not_by_precision_of_the_glob():
    wide_first = recipe('match = "**"', 'match = "blocks_3/mlp/up"\nprecision = "bf16"')
    assert wide_first.resolve("blocks_3/mlp/up").rule == 1


def test_nnx_and_linen_paths_are_one():
    either = recipe('match = "blocks_7/mlp/up"')
    assert either.resolve("blocks/7/mlp/up") == either.resolve("blocks_7/mlp/up")
    assert either.resolve("blocks/7/mlp/up").path == "blocks_7/mlp/up"


def test_a_regex_takes_the_whole_path():
    some = recipe(r"regex = 'blocks_[0-3]/mlp/\w+'")
    assert some.resolve("blocks_3/mlp/up").rule == 1
    assert some.resolve("blocks_30/mlp/up").rule == 2
    assert some.resolve("x/blocks_3/mlp/up").rule == 2


def test_selectors_of_one_rule_must_all_hold():
    some = recipe('kind = "mlp.up"\nmatch = "blocks_*/**"\nblocks = { last = 2 }')
    rules = {path: some.resolve(path, num_blocks=4).rule for path in mlps(4)}
    assert [path for path, rule in rules.items() if rule == 1] == [
        "blocks_2/mlp/up",
        "blocks_3/mlp/up",
    ]


def test_an_uncovered_layer_raises():
    some = recipe('match = "blocks_*/**"', rest="")
    with pytest.raises(RecipeError, match=r"no rule covers head; end the file with \[\[rule\]\]"):
        some.resolve("head")
    with pytest.raises(RecipeError, match="no rule covers head"):
        some.check(mlps(2))


def test_many_uncovered_layers_are_counted():
    with pytest.raises(RecipeError, match=r"blocks_0/mlp/down, .*, .* and 2 more"):
        recipe('match = "**/up"', rest="").check(mlps(4))


def test_a_rule_that_matches_nothing_raises_with_the_nearest_path():
    some = recipe('match = "blocks_*/mpl/up"')
    with pytest.raises(RecipeError) as caught:
        some.check(mlps(12), num_blocks=12)
    error = caught.value
    assert (error.file, error.place, error.line) == ("test", "rule 1", 4)
    assert "the nearest path is 'blocks_" in error.problem
    assert "/mlp/up'" in error.problem
    assert "add optional = true" in error.problem


def test_optional_rules_may_match_nothing():
    recipe('kind = "mamba.out_proj"\noptional = true').check(mlps(4))
    with pytest.raises(RecipeError, match="matches none of the 9 linear layers"):
        recipe('kind = "mamba.out_proj"\noptional = false').check(mlps(4))


def test_a_wholly_shadowed_rule_is_fine():
    recipe('match = "**"', 'match = "blocks_*/**"', 'kind = "mlp.up"').check(mlps(4))


def test_blocks_counted_from_the_end_need_their_number():
    some = recipe("blocks = { last = 2 }")
    with pytest.raises(RecipeError, match=r"rule 1.blocks.last \(line 4\): .* pass num_blocks="):
        some.resolve("blocks_3/mlp/up")
    assert recipe("blocks = { first = 2 }").resolve("blocks_1/mlp/up").rule == 1
    assert some.resolve("head").rule == 2  # lies in no block


def test_check_counts_the_blocks_itself():
    some = recipe("blocks = { last = 2 }")
    some.check(mlps(4))
    with pytest.raises(RecipeError, match=r"last = 2 is out of range: the model has 1 blocks"):
        some.check(mlps(1))


@pytest.mark.parametrize(
    ("blocks", "problem"),
    [
        ("{ first = 5 }", "first = 5 is out of range"),
        ("{ last = 5 }", "last = 5 is out of range"),
        ("{ index = [0, 4] }", "index 4 is out of range: the model has 4 blocks, 0 to 3"),
    ],
)
def test_blocks_out_of_range_raise(blocks, problem):
    with pytest.raises(RecipeError, match=problem):
        recipe(f"blocks = {blocks}").check(mlps(4), num_blocks=4)


def test_a_block_beyond_num_blocks_raises():
    with pytest.raises(RecipeError, match="lies in block 9, but num_blocks = 4"):
        recipe("blocks = { last = 2 }").resolve("blocks_9/mlp/up", num_blocks=4)


@pytest.mark.parametrize("path", ["blocks/mlp/up", "layers/fc", "decoder/layers/attention/query"])
def test_a_rule_by_block_raises_on_a_scanned_path(path):
    some = recipe("blocks = { first = 2 }")
    with pytest.raises(RecipeError, match=r"no block number; under nn.scan"):
        some.resolve(path, num_blocks=12)
    with pytest.raises(RecipeError, match=r"has a block number; under nn.scan"):
        some.check([path, "head"], num_blocks=12)
    assert (
        recipe('match = "**/mlp/up"', "blocks = { first = 2 }").resolve("blocks/mlp/up").rule == 1
    )


def test_a_scanned_module_that_linen_numbered_raises():
    some = recipe("blocks = { first = 2 }")
    with pytest.raises(RecipeError, match=r"only block 0 of 12 is found; under nn.scan"):
        some.check(["ScanBlock_0/mlp/up", "head"], num_blocks=12)


def test_a_model_without_linear_layers_raises():
    with pytest.raises(RecipeError, match="has no linear layer"):
        recipe('match = "**"').check([])


@pytest.mark.parametrize("blocks", [1, 2, 3, 4, 9, 62])
def test_nvfp4_fits_models_of_any_depth(blocks):
    nvfp4 = load_recipe("nvfp4")
    nvfp4.check(mlps(blocks), num_blocks=blocks)
    kept = [
        i
        for i in range(blocks)
        if not nvfp4.resolve(mlps(blocks)[2 * i], blocks).precision.quantized
    ]
    tail = {1: 0, 2: 0, 3: 0, 4: 1, 9: 1, 62: 9}[blocks]
    assert kept == list(range(blocks - tail, blocks))

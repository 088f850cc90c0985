"""A recipe as a value: equal, hashable, rebuilt from its text, known by its digest."""

from __future__ import annotations

import pickle

import jax
import pytest

from nvfp4_jax import Gemm, LinearPrecision, Quantizer
from nvfp4_jax.recipe import Recipe, available, load_recipe

from .malformed import HEAD, REST


@pytest.mark.parametrize("name", available())
def test_the_text_alone_gives_the_recipe_back(name):
    recipe = load_recipe(name)
    again = Recipe.from_text(recipe.text, name)
    assert again.precisions == recipe.precisions
    assert (again.rules, again.schedule) == (recipe.rules, recipe.schedule)
    assert (again.digest, again.text) == (recipe.digest, recipe.text)
    assert Recipe.from_text(recipe.text, name, recipe.source) == recipe


@pytest.mark.parametrize("name", available())
def test_it_is_hashable_and_pickles(name):
    recipe = load_recipe(name)
    assert hash(recipe) == hash(load_recipe(name))
    assert pickle.loads(pickle.dumps(recipe)) == recipe
    assert recipe.at(1, 2) in {recipe.at(1, 2)}


def test_it_is_a_static_argument_and_a_switch_compiles_anew():
    traces = []

    def f(x, recipe):
        traces.append(recipe)
        return 2 * x

    jitted = jax.jit(f, static_argnames="recipe")
    late = load_recipe("nvfp4-late-bf16")
    for step in (0, 500, 819, 820, 999):
        jitted(1.0, recipe=late.at(step, 1000))
    assert len(traces) == 2


def test_the_digest_is_of_what_the_recipe_means():
    recipe = Recipe.from_text(HEAD + REST, "a")
    spaced = Recipe.from_text("# a comment\n\n" + HEAD + "\n\n" + REST, "b")
    assert recipe.digest == spaced.digest
    changed = [
        HEAD.replace("16x16", "1x16") + REST,
        HEAD + REST.replace('"low"', '"bf16"'),
        HEAD + REST.replace('"**"', '"**/up"'),
        HEAD + REST + '[evaluation]\nprecision = "bf16"\n',
        HEAD + REST + '[[schedule]]\nfrom = 5\nprecision = "bf16"\n',
        HEAD + '[[rule]]\nmatch = "head"\nprecision = "bf16"\n' + REST,
    ]
    digests = {Recipe.from_text(text, "a").digest for text in changed}
    assert len(digests | {recipe.digest}) == len(changed) + 1


def test_defaults_and_bf16_in_words():
    text = """
    [precision.mix]
    dgrad = "bf16"
    [precision.mix.fprop]
    input = "bf16"
    weight = { format = "fp8_e4m3", rounding = "stochastic", bits = 16, scale = "power_of_two" }
    [[rule]]
    match = "**"
    precision = "mix"
    """
    weight = Quantizer("fp8_e4m3", "1x128", "stochastic", bits=16, scale="power_of_two")
    mix = Recipe.from_text(text, "mix").precision["mix"]
    assert mix == LinearPrecision(fprop=Gemm(weight=weight))


def test_bf16_is_built_in():
    assert Recipe.from_text(REST.replace("low", "bf16"), "a").precision == {
        "bf16": LinearPrecision()
    }


def test_the_exact_text_is_kept(tmp_path):
    text = "# tabs\t, CRLF\r\n" + (HEAD + REST).replace("\n", "\r\n") + "# no newline at the end"
    path = tmp_path / "mine.toml"
    path.write_bytes(text.encode())
    recipe = load_recipe(path)
    assert (recipe.text, recipe.name, recipe.source) == (text, "mine", str(path))
    assert load_recipe(str(path)) == recipe

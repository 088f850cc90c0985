"""Recipes: one TOML file says how every linear layer, GEMM and operand keeps its numbers.

    recipe = load_recipe("nvfp4")
    recipe.resolve("blocks_3/mlp/up", num_blocks=12).precision     # a LinearPrecision
    print(recipe.explain(params))                                  # proof of what will run

A file has four parts: `[precision.NAME]` tables say what a linear layer's three GEMMs do
(`precisions`); `[[rule]]` entries give layers a precision, the first match wins (`rules`,
`resolve`); `[[schedule]]` entries change GEMMs during the run (`schedule`); `[evaluation]` names
the precision to evaluate in. Nothing in it is guessed: an unknown key, an impossible combination,
a rule that matches nothing or a layer without a rule raises a `RecipeError` that names the file,
the line, the place and the remedy.

The package knows nothing of Flax: a model is a set of layer paths.
"""

from nvfp4_jax.recipe.blocks import count_blocks as count_blocks
from nvfp4_jax.recipe.errors import RecipeError as RecipeError
from nvfp4_jax.recipe.explain import Explanation as Explanation
from nvfp4_jax.recipe.kinds import KINDS as KINDS
from nvfp4_jax.recipe.kinds import kind_of as kind_of
from nvfp4_jax.recipe.layers import layer_path as layer_path
from nvfp4_jax.recipe.layers import linear_layers as linear_layers
from nvfp4_jax.recipe.load import available as available
from nvfp4_jax.recipe.load import load_recipe as load_recipe
from nvfp4_jax.recipe.recipe import Recipe as Recipe
from nvfp4_jax.recipe.resolve import Resolved as Resolved

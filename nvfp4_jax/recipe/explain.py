"""What a recipe does to a model, layer by layer: a report that can be read and checked.

`explain` asks the recipe about every linear layer it finds and never trusts a flag: the table
shows the format of each operand of each GEMM as it will run, and the summary the share of the
work done in each. Shapes suffice, so a model of any size is explained without being allocated.

A linear layer with kernel of n numbers costs 2n floating-point operations a token in each of its
three GEMMs; shares of FLOPs are therefore shares of kernel parameters, GEMM by GEMM.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

from nvfp4_jax.precision import GEMMS, OPERANDS_OF, LinearPrecision
from nvfp4_jax.quantizer import Quantizer
from nvfp4_jax.recipe.blocks import block_index, count_blocks
from nvfp4_jax.recipe.layers import count_parameters, linear_layers
from nvfp4_jax.recipe.report import as_json, as_text

if TYPE_CHECKING:
    from nvfp4_jax.recipe.recipe import Recipe


@dataclass(frozen=True)
class Layer:
    """One linear layer under a recipe: a row of the table.

    Attributes:
      path, shape: the layer and its kernel's shape.
      block: the index of its block, None outside the blocks.
      rule: number of the rule that decided; `reason` is the rule in words.
      precision_name, precision: what that rule gives.
    """

    path: str
    shape: tuple[int, ...]
    block: int | None
    rule: int
    reason: str
    precision_name: str
    precision: LinearPrecision

    @property
    def parameters(self) -> int:
        """How many numbers the kernel holds."""
        return prod(self.shape)


@dataclass(frozen=True)
class Explanation:
    """A recipe held against a model; `str()` is the table, runs of equal blocks in one row.

    Attributes:
      recipe: the recipe.
      layers: a `Layer` for each linear layer, in the order of blocks.
      num_blocks: the number of blocks; None if no path has a block number.
      parameters: of the whole model, embeddings and norms included.
    """

    recipe: Recipe
    layers: tuple[Layer, ...]
    num_blocks: int | None
    parameters: int

    def text(self, every_layer: bool = False, width: int = 130) -> str:
        """The report as plain text; `every_layer` gives each layer its own row."""
        return as_text(self, every_layer, width)

    def to_json(self) -> str:
        """The report as JSON: `recipe`, `precisions`, `layers`, `summary`; every layer in it."""
        return as_json(self)

    def share_by_format(self, blocks_only: bool = False) -> dict[str, float]:
        """The share of linear FLOPs done in each format, Fprop, Dgrad and Wgrad alike.

        A GEMM whose operands differ counts under both names: `nvfp4 x mxfp8_e4m3`.
        `blocks_only` leaves out what lies in no block, such as the head.
        """
        flops = [
            (gemm_format(layer.precision, gemm), layer.parameters)
            for layer in self.layers
            for gemm in GEMMS
            if layer.block is not None or not blocks_only
        ]
        return shares(flops)

    def share_by_precision(self, blocks_only: bool = False) -> dict[str, float]:
        """The share of linear parameters, and so of linear FLOPs, under each precision's name."""
        chosen = [x for x in self.layers if x.block is not None or not blocks_only]
        return shares([(layer.precision_name, layer.parameters) for layer in chosen])

    def __str__(self) -> str:
        return self.text()


def explain(recipe: Recipe, params_or_model: Any, num_blocks: int | None) -> Explanation:
    """Resolve every linear layer of a model; see `Recipe.explain`."""
    shapes = linear_layers(params_or_model)
    recipe.check(shapes, num_blocks)
    count = count_blocks(list(shapes)) if num_blocks is None else num_blocks
    layers = tuple(_layer(recipe, path, shape, count) for path, shape in shapes.items())
    return Explanation(recipe, layers, count, count_parameters(params_or_model))


def gemm_format(precision: LinearPrecision, gemm: str) -> str:
    """The format a GEMM runs in: `nvfp4`, or `nvfp4 x bf16` if its operands differ."""
    operands = [getattr(getattr(precision, gemm), name) for name in OPERANDS_OF[gemm]]
    names = [q.format if isinstance(q, Quantizer) else q for q in operands]
    return names[0] if len(set(names)) == 1 else " x ".join(names)


def shares(weighted: list[tuple[str, int]]) -> dict[str, float]:
    """Each name's part of the total weight, the largest first."""
    totals: dict[str, int] = {}
    for name, weight in weighted:
        totals[name] = totals.get(name, 0) + weight
    whole = sum(totals.values())
    ordered = sorted(totals.items(), key=lambda item: -item[1])
    return {name: weight / whole for name, weight in ordered}


def _layer(recipe: Recipe, path: str, shape: tuple[int, ...], num_blocks: int | None) -> Layer:
    found = recipe.resolve(path, num_blocks)
    names = (found.precision_name, found.precision)
    return Layer(found.path, shape, block_index(path), found.rule, found.reason, *names)

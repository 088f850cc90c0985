"""Recipes small enough for small models."""

from __future__ import annotations

from nvfp4_jax.recipe import Recipe

TEXT = """
[precision.nvfp4.fprop]
input  = { format = "nvfp4" }
weight = { format = "nvfp4", granularity = "16x16" }
[precision.nvfp4.dgrad]
grad   = { format = "nvfp4", rounding = "stochastic" }
weight = { format = "nvfp4", granularity = "16x16" }
[precision.nvfp4.wgrad]
input  = { format = "nvfp4", rht = 16 }
grad   = { format = "nvfp4", rht = 16, rounding = "stochastic" }
[[rule]]
match = "head"
precision = "bf16"
optional = true
[[rule]]
match = "**"
precision = "nvfp4"
[evaluation]
precision = "bf16"
"""


def small_recipe(extra: str = "") -> Recipe:
    """Everything NVFP4 but a layer called `head`."""
    return Recipe.from_text(TEXT + extra, "small")

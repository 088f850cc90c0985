"""`HybridConfig`: the whole shape of a model, as one frozen, hashable value.

A hybrid is told by a *pattern*, one letter for each mixer in the order in which they run:

| letter | mixer       | what it costs a token                                      |
|--------|-------------|------------------------------------------------------------|
| `M`    | Mamba-2     | a state of fixed size, whatever the length                 |
| `-`    | MLP         | nothing beyond its two products                            |
| `*`    | attention   | a cache and a product that grow with the length            |

A *block* is what a recipe counts ("the last 15% of blocks") and what rematerialization and the
scan over repeats work on. It holds one mixer, as in Nemotron-H; with `mixers_per_block = 2` and
the pattern `*-*-...` it is the usual Transformer block of attention and MLP.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Literal

MIXERS = {"M": "mamba", "-": "mlp", "*": "attention"}
MLP_KINDS = ("relu_squared", "swiglu")
POSITIONS = ("none", "rope")

# The sizes that a mixer cannot do without; those of absent mixers may stay 0.
_NEEDS = {
    "M": ("mamba_heads", "mamba_head_dim", "state", "groups", "conv_width", "chunk"),
    "-": ("ffn",),
    "*": ("attention_heads", "kv_heads", "head_dim"),
}


@dataclass(frozen=True)
class HybridConfig:
    """The shape of a hybrid Mamba-2 / attention / MLP language model.

    Attributes:
      pattern: one letter a mixer: `M` Mamba-2, `-` MLP, `*` attention.
      hidden: width of the residual stream.
      vocabulary: number of tokens; embedding and head are untied.
      mixers_per_block: letters of the pattern that make one block.
      ffn: width inside the MLP.
      mlp: `relu_squared`, down(relu(up(x))^2), or `swiglu`, down(silu(gate(x)) * up(x)).
      attention_heads, kv_heads, head_dim: query heads, key/value heads (a divisor of the former)
        and their width; heads x head_dim need not equal hidden.
      positions: `none`, or `rope`: rotary position embedding of base `rope_theta`.
      mamba_heads, mamba_head_dim: H and P; the inner width is d = H * P.
      state, groups: N, the state of one channel, and G, how many pairs of B and C there are
        (a divisor of H).
      conv_width: taps of the causal depthwise convolution.
      chunk: tokens that the scan treats with matrix products at a time; changes speed, not results.
      dt_limit: lower and upper bound of dt after softplus.
      norm_eps: added to the mean square in every RMSNorm.
      init_sigma: standard deviation of linear weights and embedding at initialization.

    Raises:
      ValueError: a field that is out of range or does not fit another; the message names it.
    """

    pattern: str
    hidden: int
    vocabulary: int
    mixers_per_block: int = 1
    ffn: int = 0
    mlp: Literal["relu_squared", "swiglu"] = "relu_squared"
    attention_heads: int = 0
    kv_heads: int = 0
    head_dim: int = 0
    positions: Literal["none", "rope"] = "none"
    rope_theta: float = 10_000.0
    mamba_heads: int = 0
    mamba_head_dim: int = 0
    state: int = 0
    groups: int = 0
    conv_width: int = 4
    chunk: int = 128
    dt_limit: tuple[float, float] = (0.0, math.inf)
    norm_eps: float = 1e-5
    init_sigma: float = 0.02

    def __post_init__(self) -> None:
        object.__setattr__(self, "dt_limit", tuple(self.dt_limit))
        _check_types(self)
        _check_pattern(self)
        _check_sizes(self)
        _check_words(self)
        _check_ranges(self)

    @property
    def blocks(self) -> tuple[str, ...]:
        """The letters of each block."""
        size = self.mixers_per_block
        return tuple(self.pattern[i : i + size] for i in range(0, len(self.pattern), size))

    @property
    def num_blocks(self) -> int:
        """How many blocks there are: what a recipe counts."""
        return len(self.pattern) // self.mixers_per_block

    @property
    def mamba_inner(self) -> int:
        """d = H * P, the width of x and z inside Mamba-2."""
        return self.mamba_heads * self.mamba_head_dim

    @property
    def conv_channels(self) -> int:
        """d + 2 G N: x, B and C pass through the convolution."""
        return self.mamba_inner + 2 * self.groups * self.state

    @property
    def in_proj_features(self) -> int:
        """2 d + 2 G N + H: z, x, B, C and dt side by side."""
        return self.mamba_inner + self.conv_channels + self.mamba_heads


def _check_types(config: HybridConfig) -> None:
    """Integers must be integers: 128.0 would surface as a shape error far from here."""
    for field in fields(HybridConfig):
        value = getattr(config, field.name)
        wanted = {"int": int, "str": str, "float": (int, float)}.get(str(field.type))
        if wanted and (isinstance(value, bool) or not isinstance(value, wanted)):
            raise ValueError(f"{field.name} = {value!r}: expected {field.type}")


def _check_pattern(config: HybridConfig) -> None:
    if "E" in config.pattern:
        raise ValueError(f"pattern {config.pattern!r}: mixture of experts (E) is not supported")
    unknown = sorted(set(config.pattern) - set(MIXERS))
    if unknown or not config.pattern:
        letters = ", ".join(f"{letter!r} {name}" for letter, name in MIXERS.items())
        raise ValueError(f"pattern {config.pattern!r}: use the letters {letters}")
    size = config.mixers_per_block
    if size < 1 or len(config.pattern) % size:
        raise ValueError(
            f"mixers_per_block = {size} does not divide the {len(config.pattern)} mixers of the "
            f"pattern {config.pattern!r}"
        )
    repeated = next((block for block in config.blocks if len(set(block)) < size), None)
    if repeated:
        raise ValueError(f"block {repeated!r} of the pattern holds the same mixer twice")


def _check_sizes(config: HybridConfig) -> None:
    needed = ["hidden", "vocabulary"]
    for letter, names in _NEEDS.items():
        needed += [name for name in names if letter in config.pattern]
    for name in needed:
        if getattr(config, name) < 1:
            raise ValueError(f"{name} = {getattr(config, name)}: this pattern needs at least 1")
    for name, divisor in (("attention_heads", "kv_heads"), ("mamba_heads", "groups")):
        size, by = getattr(config, name), getattr(config, divisor)
        if name in needed and size % by:
            raise ValueError(f"{name} = {size} is not a multiple of {divisor} = {by}")


def _check_words(config: HybridConfig) -> None:
    for name, allowed in (("mlp", MLP_KINDS), ("positions", POSITIONS)):
        if getattr(config, name) not in allowed:
            raise ValueError(f"{name} = {getattr(config, name)!r}: use one of {', '.join(allowed)}")
    if config.positions == "rope" and config.head_dim % 2:
        raise ValueError(f"head_dim = {config.head_dim}: rope rotates pairs, use an even number")


def _check_ranges(config: HybridConfig) -> None:
    for name in ("norm_eps", "init_sigma", "rope_theta"):
        value = getattr(config, name)
        if not 0 < value < math.inf:
            raise ValueError(f"{name} = {value}: expected a positive, finite number")
    if len(config.dt_limit) != 2 or not 0 <= config.dt_limit[0] < config.dt_limit[1]:
        raise ValueError(f"dt_limit = {config.dt_limit}: expected (low, high) with 0 <= low < high")

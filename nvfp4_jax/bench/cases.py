"""The quantizers that a linear layer asks for, as cases to be timed.

| case            | what                                           | for                          |
|-----------------|------------------------------------------------|------------------------------|
| amax            | the largest magnitude                          | every tensor scale           |
| amax-both       | that of x and of its rotation, from one read   | Fprop and Wgrad's input      |
| nearest         | blocks of 1x16 along the columns               | Fprop's input                |
| stochastic      | the same, stochastically                       | Dgrad's gradient             |
| square          | tiles of 16x16                                 | weights                      |
| rht             | rotated along the rows (tokens), nearest       | Wgrad's input                |
| rht-stochastic  | the same, stochastically                       | Wgrad's gradient             |
| dual            | nearest and rht, from one read                 | an input                     |
| dual-stochastic | stochastic and rht-stochastic, from one read   | a gradient                   |
| pack, pack-rht  | nearest, rht, as 4-bit codes and scales        | packed residuals             |
| unpack          | codes and scales of rht to a bf16 operand      | Wgrad with packed residuals  |
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from nvfp4_jax.bench.spelling import one_of
from nvfp4_jax.quantizer import Quantizer

Kind = Literal["amax", "operands", "pack", "unpack"]

NEAREST = (Quantizer("nvfp4"), -1)
STOCHASTIC = (Quantizer("nvfp4", rounding="stochastic"), -1)
SQUARE = (Quantizer("nvfp4", "16x16"), -1)
RHT = (Quantizer("nvfp4", rht=16), -2)
RHT_STOCHASTIC = (Quantizer("nvfp4", rht=16, rounding="stochastic"), -2)


@dataclass(frozen=True)
class Case:
    """One thing to time: a kind of work, and the (quantizer, axis) of each copy."""

    kind: Kind
    copies: tuple[tuple[Quantizer, int], ...]

    @property
    def flop_per_element(self) -> int:
        """FLOP of the definition, for a roofline; the integer work of Philox does not count.

        An element is compared with its block's maximum, multiplied by a scale, clipped, rounded
        (divide, add, floor or subtract, multiply) and multiplied by the block's scale: 8. A
        rotation adds a sign and log2(16) = 4 butterflies. Unpacking is one multiplication.
        """
        if self.kind == "unpack":
            return 1
        rounded = 1 if self.kind == "amax" else 8
        return sum(rounded + (5 if quantizer.rht else 0) for quantizer, _ in self.copies)


CASES = {
    "amax": Case("amax", (NEAREST,)),
    "amax-both": Case("amax", (NEAREST, RHT)),
    "nearest": Case("operands", (NEAREST,)),
    "stochastic": Case("operands", (STOCHASTIC,)),
    "square": Case("operands", (SQUARE,)),
    "rht": Case("operands", (RHT,)),
    "rht-stochastic": Case("operands", (RHT_STOCHASTIC,)),
    "dual": Case("operands", (NEAREST, RHT)),
    "dual-stochastic": Case("operands", (STOCHASTIC, RHT_STOCHASTIC)),
    "pack": Case("pack", (NEAREST,)),
    "pack-rht": Case("pack", (RHT,)),
    "unpack": Case("unpack", (RHT,)),
}


def chosen(names: tuple[str, ...]) -> dict[str, Case]:
    """The cases of these names; all if there are none.

    Raises:
      UsageError: a name that no case has.
    """
    return {one_of("--cases", name, tuple(CASES)): CASES[name] for name in names} or CASES

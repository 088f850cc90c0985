"""`Quantizer`: everything that decides a tensor's codes, as one frozen, hashable value.

Because it is static and hashable it can be closed over, compared, used as a cache key, printed
in a table, and passed as a non-differentiable argument; a change of quantizer is a recompilation,
never a branch at run time.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Literal

from nvfp4_jax.formats import FORMATS, Element, Format, block_shape

ROUNDINGS = ("nearest", "stochastic")
RANDOM_BITS = (8, 16, 32)
RHT_SIZES = (0, 4, 8, 16, 32, 64, 128)
SIGNS = ("fixed", "random")


def nearest_spelling(word: object, allowed: tuple | list) -> str:
    """`; did you mean 'x'?` for the closest allowed word, else the list of them."""
    close = difflib.get_close_matches(str(word), [str(a) for a in allowed], n=1, cutoff=0.5)
    listing = ", ".join(repr(a) for a in allowed)
    return f"did you mean {close[0]!r}? Allowed: {listing}" if close else f"allowed: {listing}"


@dataclass(frozen=True)
class Quantizer:
    """How one tensor becomes codes and scales.

    Attributes:
      format: `nvfp4`, `mxfp4`, `mxfp8_e4m3`, `mxfp8_e5m2`, `fp8_e4m3`, `fp8_e5m2`.
      granularity: rows x length of a block (`1x16`, `16x16`, `1x32`, `1x128`, `128x128`), or
        `tensor`. Left empty: the format's own default.
      rounding: `nearest` (ties to even), or `stochastic`, which needs a key.
      bits: random bits an element under stochastic rounding: 8 (as Blackwell's `cvt.rs`), 16, 32.
      rht: length of the random Hadamard transform along the axis before quantizing; 0 is none.
      scale: rule of the block scale; left empty: the format's own default
        (`amax` for nvfp4 and fp8, `up` for MX). Others: `floor` (MX), `power_of_two` (fp8).
      sign: the RHT's signs: `fixed` (defined for 16 only, and its default), or `random`, drawn
        from the key (the default of every other length).

    Raises:
      ValueError: an unknown word, or a combination that no arithmetic is defined for; the message
        names the field and the nearest right spelling.

    Source: arXiv 2509.25149, section 4 and appendices B to D.
    """

    format: str = "nvfp4"
    granularity: str = ""
    rounding: Literal["nearest", "stochastic"] = "nearest"
    bits: int = 8
    rht: int = 0
    scale: str = ""
    sign: str = ""

    def __post_init__(self) -> None:
        _check("format", self.format, tuple(FORMATS))
        fmt = FORMATS[self.format]
        _default(self, "granularity", fmt.granularities[0])
        _default(self, "scale", fmt.scales[0])
        _default(self, "sign", "fixed" if self.rht in (0, 16) else "random")
        _check("granularity", self.granularity, fmt.granularities, f" for {self.format}")
        _check("scale", self.scale, fmt.scales, f" for {self.format}")
        _check("rounding", self.rounding, ROUNDINGS)
        _check("bits", self.bits, RANDOM_BITS)
        _check("rht", self.rht, RHT_SIZES)
        _check("sign", self.sign, SIGNS)
        if self.rounding == "nearest" and self.bits != 8:
            raise ValueError(
                f"bits = {self.bits} has no effect with rounding = 'nearest'; "
                "leave bits out or set rounding = 'stochastic'"
            )
        if self.sign == "fixed" and self.rht not in (0, 16):
            raise ValueError(
                f"sign = 'fixed' is defined for rht = 16 only, not {self.rht}; use sign = 'random'"
            )
        if self.sign == "random" and self.rht == 0:
            raise ValueError(
                "sign = 'random' has no effect without an rht; set rht or leave it out"
            )

    @property
    def spec(self) -> Format:
        """The row of `formats.FORMATS` this quantizer names."""
        return FORMATS[self.format]

    @property
    def element(self) -> Element:
        """The element format of the codes."""
        return self.spec.element

    @property
    def block(self) -> tuple[int, int] | None:
        """(rows, length along the axis) of a block, None for one scale a tensor."""
        return block_shape(self.granularity)

    @property
    def needs_key(self) -> bool:
        """Whether quantizing draws random numbers."""
        return self.rounding == "stochastic" or self.sign == "random"

    def __str__(self) -> str:
        """A short form for tables: `nvfp4 16x16`, `nvfp4 rht16 sr8`."""
        words = [self.format]
        if self.granularity != self.spec.granularities[0]:
            words.append(self.granularity)
        if self.scale != self.spec.scales[0]:
            words.append(self.scale)
        if self.rht:
            words.append(
                f"rht{self.rht}" + ("±" if self.rht == 16 and self.sign == "random" else "")
            )
        if self.rounding == "stochastic":
            words.append(f"sr{self.bits}")
        return " ".join(words)


def _check(field: str, value: object, allowed: tuple, context: str = "") -> None:
    if isinstance(value, bool) or value not in allowed:
        raise ValueError(
            f"{field} = {value!r} is not known{context}: {nearest_spelling(value, allowed)}"
        )


def _default(quantizer: Quantizer, field: str, value: str) -> None:
    if getattr(quantizer, field) == "":
        object.__setattr__(quantizer, field, value)

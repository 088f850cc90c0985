"""Which quantizer each operand of each GEMM of a linear layer gets.

A linear layer y = x w costs three products, and each has two operands:

| GEMM  | product      | operands        | contraction axis       |
|-------|--------------|-----------------|------------------------|
| Fprop | y  = x w     | `input, weight` | features in            |
| Dgrad | dx = dy wᵀ   | `grad, weight`  | features out           |
| Wgrad | dw = xᵀ dy   | `input, grad`   | tokens                 |

An operand is a `Quantizer` or the word `"bf16"`: cast to bfloat16, multiplied with FP32
accumulation. A rotation (RHT) must be on both operands of a GEMM or on neither, since it only
cancels in the product: (x H)(H^T w) = x w.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from nvfp4_jax.quantizer import Quantizer

GEMMS = ("fprop", "dgrad", "wgrad")
OPERANDS = ("input", "weight", "grad")
OPERANDS_OF = {
    "fprop": ("input", "weight"),
    "dgrad": ("grad", "weight"),
    "wgrad": ("input", "grad"),
}
RESIDUALS = ("bf16", "packed")

Operand = Quantizer | Literal["bf16"]


@dataclass(frozen=True)
class Gemm:
    """The two operands of one GEMM; the one it does not have stays `"bf16"`.

    Raises:
      ValueError: the operands carry different rotations, which would not cancel.
    """

    input: Operand = "bf16"
    weight: Operand = "bf16"
    grad: Operand = "bf16"

    def __post_init__(self) -> None:
        for name in OPERANDS:
            operand = getattr(self, name)
            if not isinstance(operand, Quantizer) and operand != "bf16":
                raise ValueError(f"{name} = {operand!r}: an operand is a Quantizer or 'bf16'")

    @property
    def quantized(self) -> bool:
        """Whether any operand is kept in fewer bits than bf16."""
        return any(isinstance(getattr(self, name), Quantizer) for name in OPERANDS)


@dataclass(frozen=True)
class LinearPrecision:
    """The three GEMMs of a linear layer; `LinearPrecision()` is bf16 throughout.

    Attributes:
      fprop, dgrad, wgrad: the operands of each GEMM.
      residuals: what the backward pass keeps of the input: `bf16`, 16 bits an element, or
        `packed`, Wgrad's quantized operand at its stored size (4.5 bits in NVFP4). It changes
        memory, and no bit of any result.

    Raises:
      ValueError: an operand that its GEMM does not have, a rotation on one operand only, or packed
        residuals where Wgrad's input is not quantized.
    """

    fprop: Gemm = Gemm()
    dgrad: Gemm = Gemm()
    wgrad: Gemm = Gemm()
    residuals: Literal["bf16", "packed"] = "bf16"

    def __post_init__(self) -> None:
        for name in GEMMS:
            _check_gemm(name, getattr(self, name))
        if self.residuals not in RESIDUALS:
            raise ValueError(f"residuals = {self.residuals!r}: write one of {', '.join(RESIDUALS)}")
        if self.residuals == "packed" and self.wgrad.input == "bf16":
            raise ValueError(
                "residuals = 'packed' keeps wgrad's quantized input, and it is bf16; quantize it, "
                "or leave residuals out"
            )

    @property
    def quantized(self) -> bool:
        """Whether any of the three GEMMs is."""
        return any(getattr(self, name).quantized for name in GEMMS)

    @property
    def needs_key(self) -> bool:
        """Whether any operand draws random numbers."""
        return any(quantizer.needs_key for quantizer in self.quantizers)

    @property
    def quantizers(self) -> tuple[Quantizer, ...]:
        """Those of all operands that are not bf16."""
        gemms = [getattr(self, name) for name in GEMMS]
        operands = [getattr(gemm, name) for gemm in gemms for name in OPERANDS]
        return tuple(q for q in operands if isinstance(q, Quantizer))


def rotation(operand: Operand) -> tuple[int, str]:
    """(length, sign policy) of an operand's RHT; (0, "") for none. Equal pairs cancel."""
    if isinstance(operand, Quantizer) and operand.rht:
        return operand.rht, operand.sign
    return 0, ""


def _check_gemm(name: str, gemm: Gemm) -> None:
    if not isinstance(gemm, Gemm):
        raise ValueError(f"{name} = {gemm!r}: a GEMM's precision is a Gemm(...)")
    first, second = OPERANDS_OF[name]
    (extra,) = set(OPERANDS) - {first, second}
    if getattr(gemm, extra) != "bf16":
        raise ValueError(f"{name} has no operand {extra!r}; its operands are {first}, {second}")
    one, other = rotation(getattr(gemm, first)), rotation(getattr(gemm, second))
    if one != other:
        raise ValueError(
            f"{name}: the rotation of {first} ({_described(one)}) and of {second} "
            f"({_described(other)}) differ and would not cancel; give both the same rht and sign"
        )


def _described(rotation: tuple[int, str]) -> str:
    length, sign = rotation
    return f"rht = {length}, sign = {sign}" if length else "rht = 0"

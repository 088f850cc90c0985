"""`[precision.NAME]` tables to `LinearPrecision`.

    [precision.nvfp4.fprop]
    input  = { format = "nvfp4" }
    weight = { format = "nvfp4", granularity = "16x16" }

and, beside the GEMMs, `residuals = "packed"` to keep Wgrad's input in 4 bits.

Three levels, layer -> GEMM -> operand, one function each. `Quantizer` and `LinearPrecision` know
which combinations have a meaning and say so; here their words get the place in the file.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from nvfp4_jax.precision import OPERANDS_OF, Gemm, LinearPrecision, Operand
from nvfp4_jax.quantizer import Quantizer
from nvfp4_jax.recipe.errors import Place
from nvfp4_jax.recipe.schema import (
    GemmTable,
    OperandTable,
    PrecisionTable,
    Table,
    decode,
    given,
)

BF16 = "bf16"


def decode_precisions(tables: dict[str, Table], place: Place) -> dict[str, LinearPrecision]:
    """Every named precision of a file, and `bf16`, which is built in.

    Raises:
      RecipeError: a redefined `bf16`, an empty table, or a combination without meaning.
    """
    if BF16 in tables:
        raise place.at(BF16).error(
            "bf16 is built in and cannot be redefined; give this precision another name"
        )
    precisions = {BF16: LinearPrecision()}
    for name, table in tables.items():
        precisions[name] = _precision(table, place.at(name))
    return precisions


def _precision(table: Table, place: Place) -> LinearPrecision:
    gemms = given(decode(PrecisionTable, table, place))
    residuals = gemms.pop("residuals", BF16)
    if not gemms:
        raise place.error(
            "this precision says nothing; give it a GEMM such as "
            f"[{place}.fprop], or use the built-in 'bf16'"
        )
    decoded: dict[str, Any] = {
        name: _gemm(gemm, name, place.at(name)) for name, gemm in gemms.items()
    }
    try:
        return LinearPrecision(**decoded, residuals=residuals)
    except ValueError as error:
        raise place.at("residuals").error(str(error)) from None


def _gemm(table: str | Table, name: str, place: Place) -> Gemm:
    if isinstance(table, str):
        _only_bf16(table, place, 'a table of operands, or "bf16"')
        return Gemm()
    operands = given(decode(GemmTable, table, place))
    pair = " and ".join(OPERANDS_OF[name])
    if not operands:
        raise place.error(f"this GEMM says nothing; give it {pair}, or leave it out for bf16")
    for extra in set(operands) - set(OPERANDS_OF[name]):
        raise place.at(extra).error(f"{name} has no operand {extra!r}; its operands are {pair}")
    decoded: dict[str, Operand] = {k: _operand(v, place.at(k)) for k, v in operands.items()}
    gemm = Gemm(**decoded)
    try:
        replace(LinearPrecision(), **{name: gemm})
    except ValueError as error:
        raise place.error(str(error)) from None
    return gemm


def _operand(table: str | Table, place: Place) -> Operand:
    if isinstance(table, str):
        _only_bf16(table, place, f'a table such as {{ format = "{table}" }}, or "bf16"')
        return "bf16"
    fields = given(decode(OperandTable, table, place))
    if fields["format"] == BF16:
        raise place.at("format").error(f'bf16 takes no options; write {place.path[-1]} = "bf16"')
    if "bits" in fields and fields.get("rounding") != "stochastic":
        raise place.at("bits").error(
            "bits has no effect without stochastic rounding; leave it out or add "
            'rounding = "stochastic"'
        )
    if "sign" in fields and not fields.get("rht"):
        raise place.at("sign").error("sign has no effect without an rht; leave it out or add one")
    return _quantizer(fields, place)


def _quantizer(fields: dict, place: Place) -> Quantizer:
    for key, value in fields.items():
        if value == "":
            raise place.at(key).error(f'{key} = "" is empty; leave it out for the default')
    try:
        return Quantizer(**fields)
    except ValueError as error:
        culprit = str(error).split(" ", 1)[0]
        raise (place.at(culprit) if culprit in fields else place).error(str(error)) from None


def _only_bf16(word: str, place: Place, wanted: str) -> None:
    if word != BF16:
        raise place.error(f"{place.path[-1]} = {word!r}: expected {wanted}")

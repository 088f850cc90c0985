"""The precisions the products are tried in, and the shapes."""

from __future__ import annotations

import numpy as np

from nvfp4_jax import Gemm, LinearPrecision, Quantizer

ROW = Quantizer("nvfp4")
TILE = Quantizer("nvfp4", "16x16")
NOISY = Quantizer("nvfp4", rounding="stochastic")
ROTATED = Quantizer("nvfp4", rht=16)
NOISY_ROTATED = Quantizer("nvfp4", rht=16, rounding="stochastic")


def everywhere(input: Quantizer, weight: Quantizer, grad: Quantizer) -> LinearPrecision:
    return LinearPrecision(
        fprop=Gemm(input=input, weight=weight),
        dgrad=Gemm(grad=grad, weight=weight),
        wgrad=Gemm(input=input, grad=grad),
    )


def same(quantizer: Quantizer) -> LinearPrecision:
    return everywhere(quantizer, quantizer, quantizer)


PAPER = LinearPrecision(
    fprop=Gemm(input=ROW, weight=TILE),
    dgrad=Gemm(grad=NOISY, weight=TILE),
    wgrad=Gemm(input=ROTATED, grad=NOISY_ROTATED),
)
# As the paper's, of everything one kind at least, and a third of the time to compile.
LEAN = LinearPrecision(
    fprop=Gemm(input=ROW, weight=Quantizer("mxfp4")),
    dgrad=Gemm(grad=Quantizer("mxfp4", rounding="stochastic"), weight=TILE),
    wgrad=Gemm(
        input=Quantizer("mxfp4", rht=16),
        grad=Quantizer("mxfp4", rht=16, rounding="stochastic", bits=16),
    ),
)
FP8 = Quantizer("fp8_e4m3")
FP8_TILE = Quantizer("fp8_e4m3", "128x128")
PRECISIONS = {
    "paper": PAPER,
    "lean": LEAN,
    "bf16": LinearPrecision(),
    "rows": same(ROW),
    "mxfp4": same(Quantizer("mxfp4")),
    "mxfp8": everywhere(
        Quantizer("mxfp8_e4m3"),
        Quantizer("mxfp8_e4m3", scale="floor"),
        Quantizer("mxfp8_e5m2", rounding="stochastic", bits=16),
    ),
    "fp8": everywhere(FP8, FP8_TILE, FP8),
    "fp8 tensor": everywhere(
        Quantizer("fp8_e4m3", "tensor"),
        Quantizer("fp8_e4m3", "tensor", scale="power_of_two"),
        Quantizer("fp8_e5m2"),
    ),
    "mixed": LinearPrecision(
        fprop=Gemm(input=ROW),
        dgrad=Gemm(grad=Quantizer("mxfp8_e5m2"), weight=TILE),
        wgrad=Gemm(input=ROTATED, grad=Quantizer("fp8_e4m3", rht=16)),
    ),
    "rotations": LinearPrecision(
        fprop=Gemm(input=Quantizer(rht=64), weight=Quantizer("mxfp4", rht=64)),
        dgrad=Gemm(
            grad=Quantizer(rht=32, rounding="stochastic", bits=32), weight=Quantizer(rht=32)
        ),
        wgrad=Gemm(input=Quantizer(rht=16, sign="random"), grad=Quantizer(rht=16, sign="random")),
    ),
    "forward only": LinearPrecision(fprop=Gemm(input=ROW, weight=TILE)),
    "backward only": LinearPrecision(dgrad=PAPER.dgrad, wgrad=PAPER.wgrad),
}

# name: (shape of lhs, shape of rhs, dimension numbers)
PLAIN = ((50, 40), (40, 24), (((1,), (0,)), ((), ())))
LAYOUTS = {
    "plain": PLAIN,
    "tokens": ((3, 17, 40), (40, 24), (((2,), (0,)), ((), ()))),
    "transposed": ((40, 50), (24, 40), (((0,), (1,)), ((), ()))),
    "one token": ((40,), (40, 24), (((0,), (0,)), ((), ()))),
    "batch": ((2, 48, 32), (2, 32, 16), (((2,), (1,)), ((0,), (0,)))),
}
# Several axes of one kind. Rounded to nearest only: the places of random bits are defined for the
# tensor as passed, and an operand with several axes merged into one is passed on as a matrix.
SEVERAL = {
    "heads in": ((5, 7, 4, 10), (4, 10, 24), (((2, 3), (0, 1)), ((), ()))),
    "heads out": ((5, 7, 40), (40, 3, 8), (((2,), (0,)), ((), ()))),
    "swapped": ((5, 10, 4, 7), (4, 24, 10), (((2, 1), (0, 2)), ((), ()))),
    "batch inside": ((16, 2, 32), (32, 3, 2, 16), (((2,), (0,)), ((1,), (2,)))),
    "two batches": ((2, 3, 17, 20), (3, 20, 2, 5), (((3,), (1,)), ((0, 1), (2, 0)))),
}


def numbers(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Heavy-tailed, so that blocks differ and rounding matters."""
    rng = np.random.default_rng(seed)
    return rng.standard_t(3, size=shape).astype(np.float32)

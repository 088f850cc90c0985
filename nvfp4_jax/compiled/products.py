"""The matrix products of a compiled program: whose they are, what runs them, how much they cost.

| in the program                             | executor                                     |
|--------------------------------------------|----------------------------------------------|
| Mosaic kernel with `kind::mxf4nvf4`        | tcgen05 block-scaled, native                 |
| `__op$block_scaled_dot`                    | cuDNN block-scaled, native on Blackwell      |
| Mosaic kernel with `wgmma`                 | wgmma scaled: bf16, and the tensor scales    |
| `__cublas$gemm`, `__cublas$lt$matmul`      | cuBLAS bf16                                  |
| `dot` in a fusion that XLA gives to Triton | XLA Triton bf16                              |
| `dot` otherwise                            | XLA dot bf16                                 |
| a Triton kernel with `tt.dot`              | Triton and its name; FLOPs are not counted   |

A product with a batch of one is rewritten by XLA to one without a batch, which carries no name; it
belongs where both of its operands do.

A product of (m, k) and (k, n) counts 2 m k n floating-point operations, times the runs of the
loops that it is in.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from nvfp4_jax.compiled.flow import Value
from nvfp4_jax.compiled.hlo import ArrayType, Instruction, Program
from nvfp4_jax.compiled.kernels import is_mosaic, triton_kernel
from nvfp4_jax.compiled.merged import layers_of
from nvfp4_jax.compiled.triton_ir import multiplies
from nvfp4_jax.scopes import Place, place_of

TCGEN05, WGMMA, CUDNN = "tcgen05 block-scaled", "wgmma scaled", "cuDNN block-scaled"
NATIVE = (TCGEN05, CUDNN)  # multiply 4-bit codes with their block scales
_IN_MOSAIC = {"mxf4nvf4": TCGEN05, "wgmma": WGMMA}  # told by the instruction in the kernel itself
_SCALED = ("__op$block_scaled_dot", "__cudnn$blockScaledDot")
_CONTRACTED = re.compile(r"lhs_contracting_dims=\{([\d,]*)\}")
_GEMM_CONTRACTED = re.compile(r'"lhs_contracting_dimensions":\[([^\]]*)\]')


@dataclass(frozen=True)
class Product:
    """One matrix product.

    Attributes:
      instruction: what it is in the program.
      place: its layer and GEMM; None for one that no recipe governs (attention, the SSM).
      layers: those it serves; several in a loop over blocks, and where XLA merged products.
      executor: what multiplies, from the table above.
      native: whether it takes 4-bit codes and block scales.
      operands: for each of the two, the arrays it consists of: one, or codes and scales.
      flops: of all its runs; None where the program does not tell.
      runs: how often it runs in one run of the program.
    """

    instruction: Instruction
    place: Place | None
    layers: tuple[str, ...]
    executor: str
    native: bool
    operands: tuple[tuple[Value, ...], tuple[Value, ...]]
    flops: int | None
    runs: int


def products(program: Program) -> list[Product]:
    """Every matrix product, in the order of the text."""
    found = (_product(program, i) for i in program.instructions.values())
    return [product for product in found if product is not None]


def _product(program: Program, i: Instruction) -> Product | None:
    executor = _executor(program, i)
    runs = program.runs.get(i.computation, 0)
    if executor is None or not runs:
        return None
    flops, operands = _flops(program, i, executor), _operands(i, executor)
    place = place_of(i.op_name) if i.op_name else _place_of_operands(program, operands)
    return Product(
        instruction=i,
        place=place,
        layers=layers_of(program, place, (arrays[0] for arrays in operands)),
        executor=executor,
        native=executor in NATIVE,
        operands=operands,
        flops=None if flops is None else flops * runs,
        runs=runs,
    )


def _place_of_operands(
    program: Program, operands: tuple[tuple[Value, ...], tuple[Value, ...]]
) -> Place | None:
    """The GEMM in whose scope both operands were made; None if they were made in different ones."""
    names = (
        program.instructions[v.computation, v.name].op_name for arrays in operands for v in arrays
    )
    found = {place and place._replace(operand=None) for place in map(place_of, names)}
    return found.pop() if len(found) == 1 else None


def _executor(program: Program, i: Instruction) -> str | None:
    if i.opcode == "dot":
        by = "XLA Triton" if _in_triton_fusion(program, i) else "XLA dot"
        return f"{by} {_dtype(program, i)}"
    if i.opcode != "custom-call":
        return None
    if is_mosaic(i):
        known = (name for letters, name in _IN_MOSAIC.items() if letters in i.config)
        return next(known, None)
    if i.target.startswith("__cublas$"):
        return f"cuBLAS {_dtype(program, i)}"
    if i.target in _SCALED:
        return CUDNN
    kernel = triton_kernel(i)
    return f"Triton {kernel.name}" if kernel and multiplies(kernel.ir) else None


def _in_triton_fusion(program: Program, i: Instruction) -> bool:
    callers = program.callers.get(i.computation, [])
    return any('"kind":"__triton' in c.config for c in callers) or any(
        _in_triton_fusion(program, c) for c in callers if c.opcode == "fusion"
    )


def _dtype(program: Program, i: Instruction) -> str:
    """The wider of the operands' dtypes."""
    names = [program.operand(i, n).arrays[0].dtype for n in (0, 1)]
    return max(names, key=lambda name: int(re.findall(r"\d+", name)[0]))


def _operands(i: Instruction, executor: str) -> tuple[tuple[Value, ...], tuple[Value, ...]]:
    """The arrays of each operand: codes and scales where the product takes both."""
    values = [Value(i.computation, name) for name in i.operands]
    if executor in NATIVE:  # codes, codes, scales, scales, and perhaps tensor scales
        return (values[0], values[2]), (values[1], values[3])
    return (values[0],), (values[1],)


def _flops(program: Program, i: Instruction, executor: str) -> int | None:
    if executor.startswith("Triton "):
        return None  # a kernel's own loops are not read
    result = math.prod(i.arrays[0].shape)
    a, b = (
        program.instructions[arrays[0].computation, arrays[0].name].arrays[0]
        for arrays in _operands(i, executor)
    )
    if contracted := _contracted(i):
        return 2 * result * math.prod(a.shape[axis] for axis in contracted)
    # of an (m, k) and a (k, n) array, however they lie: (m k)(k n) / (m n) = k k
    return 2 * result * math.isqrt(_elements(a) * _elements(b) // result)


def _contracted(i: Instruction) -> list[int]:
    found = _CONTRACTED.search(i.attributes) or _GEMM_CONTRACTED.search(i.config)
    return [int(n.strip(' "')) for n in found[1].split(",") if n.strip()] if found else []


def _elements(array: ArrayType) -> int:
    """Numbers in an array; a byte holds two codes."""
    return math.prod(array.shape) * (2 if array.dtype == "u8" else 1)

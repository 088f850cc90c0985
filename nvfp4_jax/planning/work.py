"""What each kernel of a compiled program has to do: multiply, move bytes, or both.

Only instructions that a GPU launches count: what is inside a fusion is the fusion's. FLOPs come
from `compiled.products`; a Triton kernel that multiplies tells none there, so

    attention   FLOPs = n L |q| / documents: half of the scores are never visited;
                n products of them: 2 going forward, 3 for dq, 4 for dk and dv (`attention_triton`)
    scan        by its bytes, of which its kernels reach a share that was measured
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from nvfp4_jax.compiled.hlo import Instruction, Program
from nvfp4_jax.compiled.kernels import triton_kernel
from nvfp4_jax.compiled.products import Product, products
from nvfp4_jax.compiled.triton_ir import multiplies
from nvfp4_jax.planning.sizes import moved_bytes

ATTENTION = {"_forward": 2, "_query_gradients": 3, "_key_gradients": 4}  # kernel -> products
_DTYPE = re.compile(r"\b(f8\w+|bf16|f16|f32|f64)$")


@dataclass(frozen=True)
class Work:
    """What one run of an instruction has to do.

    Attributes:
      kind: `product`, `attention`, `scan`, or `memory` for all that multiplies no matrices.
      format: of a product's operands: `bf16`, `nvfp4`, `f32`, ...
      flops: floating-point operations.
      bytes: read and written.
    """

    kind: str
    format: str
    flops: float
    bytes: int


@dataclass(frozen=True)
class Works:
    """The work of a program's instructions.

    Attributes:
      program: compiled for one device, or each device of a mesh.
      length: tokens of a row.
      documents: in a row, of equal length.
    """

    program: Program
    length: int
    documents: int = 1

    def of(self, i: Instruction) -> Work:
        """What one run of a launched instruction has to do."""
        moved = moved_bytes(self.program, i)
        if here := self._products.get((i.computation, i.name)):
            return self._of_products(i, here, moved)
        return Work("memory", "", 0.0, moved)

    def flops_by_format(self) -> Mapping[str, float]:
        """FLOPs of one run of the program on one device, attention's under `bf16`."""
        totals: dict[str, float] = {}
        for computation, name in self._products:
            work = self.of(self.program.instructions[computation, name])
            runs = self.program.runs[computation]
            if work.flops:
                totals[work.format] = totals.get(work.format, 0.0) + work.flops * runs
        return totals

    @cached_property
    def _products(self) -> dict[tuple[str, str], list[Product]]:
        """Launched instruction -> the products in it."""
        found: dict[tuple[str, str], list[Product]] = {}
        for product in products(self.program):
            i = self._launched(product.instruction)
            found.setdefault((i.computation, i.name), []).append(product)
        return found

    def _launched(self, i: Instruction) -> Instruction:
        """The fusion that an instruction is in; itself if it is in none."""
        for caller in self.program.callers.get(i.computation, []):
            if caller.opcode in ("fusion", "fusion-start"):
                return self._launched(caller)
        return i

    def _of_products(self, i: Instruction, here: list[Product], moved: int) -> Work:
        kernel = triton_kernel(i)
        if kernel is None or not multiplies(kernel.ir):
            flops = sum((p.flops or 0) / p.runs for p in here)
            return Work("product", format_of(here[0]), flops, moved)
        if kernel.name not in ATTENTION:
            return Work("scan", "", 0.0, moved)
        queries = math.prod(self.program.operand(i, 0).arrays[0].shape)
        flops = ATTENTION[kernel.name] * queries * self.length / self.documents
        return Work("attention", "bf16", flops, moved)


def format_of(product: Product) -> str:
    """The format that a product's operands are multiplied in."""
    if product.native:
        return "nvfp4"
    found = _DTYPE.search(product.executor)
    if found is None:
        return "bf16"
    return "fp8" if found[1].startswith("f8") else found[1]

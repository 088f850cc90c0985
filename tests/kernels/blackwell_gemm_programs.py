"""Compile every variant of `block_scaled_matmul` for one GPU: HLO as JSON to stderr, PTX, the
assembler's remarks and SASS to stdout.

A process of its own, because Mosaic GPU prints them only when its environment asks for it.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp

from nvfp4_jax.compile_for import compile_for, mesh_of
from nvfp4_jax.kernels import blackwell_gemm
from nvfp4_jax.kernels.blackwell_gemm_tiling import TILINGS, Tiling
from tests import sass

SHAPE = 8136, 8128, 8192  # neither m nor n is made of whole tiles
VARIANTS = list(itertools.product(TILINGS, ("bfloat16", "float32")))
TARGETS = {"b200": "sm_100a", "gb300": "sm_103a"}


@dataclass(frozen=True)
class Compiled:
    """What became of one variant."""

    hlo: str
    ptx: str
    remarks: str
    program: sass.Program


def compiled(gpu: str) -> dict[tuple[Tiling, str], Compiled]:
    """Every variant for this GPU."""
    asked = {
        "CUDA_ROOT": str(sass.CUDA_ROOT),
        "JAX_PLATFORMS": "cpu",
        **{f"MOSAIC_GPU_DUMP_{what}": "1" for what in ("PTX", "PTXAS", "SASS")},
    }
    ran = subprocess.run(
        [sys.executable, "-m", "tests.kernels.blackwell_gemm_programs", gpu],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | asked,
        cwd=Path(__file__).parents[2],
    )
    kernels = re.split(r"^\.version", ran.stdout, flags=re.MULTILINE)[1:]
    hlos = json.loads(ran.stderr.splitlines()[-1])
    return {
        variant: _compiled(hlo, ".version" + text, TARGETS[gpu])
        for variant, hlo, text in zip(VARIANTS, hlos, kernels, strict=True)
    }


def _compiled(hlo: str, text: str, architecture: str) -> Compiled:
    """SASS as XLA's own assembler made it; where none was printed, as Triton's does."""
    ptx, rest = re.split(r"^ptxas", text, maxsplit=1, flags=re.MULTILINE)
    remarks, *code = rest.split("\t.target", 1)
    if code:
        return Compiled(hlo, ptx, remarks, sass.parsed(code[0]))
    cubin, more_remarks = sass.assembled(ptx, architecture)
    return Compiled(hlo, ptx, remarks + more_remarks, sass.disassembled(cubin))


def arguments(m: int, n: int, k: int) -> list[jax.ShapeDtypeStruct]:
    """Of `block_scaled_matmul`, with two tensor scales after the operands."""
    made = []
    for rows in (m, n):
        made.append(jax.ShapeDtypeStruct((rows, k // 2), jnp.uint8))
        tiles = -(-rows // 128), k // 64, 32, 4, 4
        made.append(jax.ShapeDtypeStruct(tiles, jnp.float8_e4m3fn))
    return [*made, *(jax.ShapeDtypeStruct((), jnp.float32) for _ in range(2))]


def product(shape: tuple[int, int, int], dtype: str):
    """The function of these arguments."""

    def scaled(a, a_scale, b, b_scale, *scalars):
        return blackwell_gemm.block_scaled_matmul(
            a, a_scale, b, b_scale, shape, scalars, jnp.dtype(dtype)
        )

    return scaled


def ragged(shape: tuple[int, int, int], dtype: str) -> tuple[tuple[int, ...], str, str]:
    """Compiled for a B200 in this process: the output's shape and dtype, and the HLO."""
    program = compile_for(mesh_of("b200"), product(shape, dtype), *arguments(*shape))
    (out,) = jax.tree.leaves(program.out_info)
    return out.shape, str(out.dtype), _text(program)


def scanned() -> str:
    """HLO of products in a scan over rematerialized layers."""
    a, a_scale, *_ = arguments(256, 256, 256)

    def layers(codes, scale):
        @jax.checkpoint
        def layer(x, _):
            y = blackwell_gemm.block_scaled_matmul(
                codes, scale, codes, scale, (256, 256, 256), (), jnp.float32
            )
            return x + y, None

        return jax.lax.scan(layer, jnp.zeros((256, 256)), None, length=3)[0]

    return _text(compile_for(mesh_of("b200"), layers, a, a_scale))


def with_scalars(count: int) -> str:
    """HLO of a product with so many tensor scales."""
    shape = 256, 256, 256
    made = [*arguments(*shape)[:4], *[jax.ShapeDtypeStruct((), jnp.float32)] * count]
    return _text(compile_for(mesh_of("b200"), product(shape, "bfloat16"), *made))


def _text(program: jax.stages.Compiled) -> str:
    text = program.as_text()
    assert text is not None
    return text


def _hlo(gpu: str, tiling: Tiling, dtype: str) -> str:
    blackwell_gemm.tiling_for = lambda *_: tiling
    return _text(compile_for(mesh_of(gpu), product(SHAPE, dtype), *arguments(*SHAPE)))


if __name__ == "__main__":
    sys.stderr.write("\n")  # after the dump's complaints, if there are any
    json.dump([_hlo(sys.argv[1], *variant) for variant in VARIANTS], sys.stderr)

"""Training in 4-bit floating point for JAX and Flax."""

import importlib

from nvfp4_jax.block_scaled import BlockScaledArray as BlockScaledArray
from nvfp4_jax.dot_general import make_dot_general as make_dot_general
from nvfp4_jax.einsum import make_einsum as make_einsum
from nvfp4_jax.packing import pack as pack
from nvfp4_jax.packing import unpack as unpack
from nvfp4_jax.precision import Gemm as Gemm
from nvfp4_jax.precision import LinearPrecision as LinearPrecision
from nvfp4_jax.quantize import dequantize as dequantize
from nvfp4_jax.quantize import qdq as qdq
from nvfp4_jax.quantize import quantize as quantize
from nvfp4_jax.quantizer import Quantizer as Quantizer
from nvfp4_jax.recipe import load_recipe as load_recipe

_FLAX = ("linen", "models", "nnx")


def __getattr__(name: str):
    """`nvfp4_jax.linen`, `.nnx` and `.models` import Flax when they are first asked for."""
    if name in _FLAX:
        return importlib.import_module(f"nvfp4_jax.{name}")
    raise AttributeError(f"module 'nvfp4_jax' has no attribute {name!r}")

"""Training in 4-bit floating point for JAX and Flax."""

from nvfp4_jax.block_scaled import BlockScaledArray as BlockScaledArray
from nvfp4_jax.dot_general import make_dot_general as make_dot_general
from nvfp4_jax.precision import Gemm as Gemm
from nvfp4_jax.precision import LinearPrecision as LinearPrecision
from nvfp4_jax.quantize import dequantize as dequantize
from nvfp4_jax.quantize import qdq as qdq
from nvfp4_jax.quantize import quantize as quantize
from nvfp4_jax.quantizer import Quantizer as Quantizer

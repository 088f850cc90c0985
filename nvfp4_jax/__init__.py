"""Training in 4-bit floating point for JAX and Flax."""

from nvfp4_jax.precision import Gemm as Gemm
from nvfp4_jax.precision import LinearPrecision as LinearPrecision
from nvfp4_jax.quantizer import Quantizer as Quantizer

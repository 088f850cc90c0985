"""Run the kernels' Python on the CPU: Triton's interpreter, as a process that serves launches.

The interpreter replaces Triton's language when TRITON_INTERPRET is set as Triton is imported, so
it lives in a process of its own. It computes in NumPy; what it lacks or does not do as a GPU does
is supplied here: casts to bf16, fused multiply-adds, minima beside a NaN, loops that count
in tensors, and what is assembly.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np

CHECKOUT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Launch:
    """A kernel by module and name, its inputs, and the shapes and dtypes of its outputs."""

    module: str
    kernel: str
    inputs: tuple[np.ndarray, ...]
    outputs: tuple[tuple[tuple[int, ...], np.dtype], ...]
    zeroed: bool
    grid: int | tuple[int, int, int]
    meta: dict


class Interpreter:
    """Launches, sent to a process that interprets them."""

    def __init__(self):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.kernels.interpreter"],
            cwd=CHECKOUT,
            env={**os.environ, "TRITON_INTERPRET": "1", "JAX_PLATFORMS": "cpu"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def __call__(self, launch: Launch) -> list[np.ndarray]:
        pickle.dump(launch, self.process.stdin)
        self.process.stdin.flush()
        answer = pickle.load(self.process.stdout)
        assert isinstance(answer, list), answer
        return answer

    def close(self):
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()


class Memory:
    """A NumPy array as the interpreter takes pointers: an address and the name of a dtype."""

    def __init__(self, array: np.ndarray):
        self.array, self.dtype = array, array.dtype.name

    def data_ptr(self) -> int:
        return self.array.ctypes.data


def interpret(launch: Launch) -> list[np.ndarray]:
    import importlib

    from triton.runtime.interpreter import GridExecutor

    class Executor(GridExecutor):
        def _init_args_hst(self, args, kwargs):
            return args, kwargs

        def _restore_args_dev(self, *_):
            pass

    kernel = getattr(importlib.import_module(launch.module), launch.kernel)
    # What is not written must not look written.
    outputs = [np.full(shape, 0, dtype) for shape, dtype in launch.outputs]
    if not launch.zeroed:
        for array in outputs:
            array.view(np.uint8)[...] = 0x7B
    memory = [Memory(array) for array in (*launch.inputs, *outputs)]
    with np.errstate(all="ignore"):
        grid = launch.grid if isinstance(launch.grid, tuple) else (launch.grid, 1, 1)
        Executor(kernel.rewrite(), kernel.arg_names, grid)(*memory, **launch.meta)
    return outputs


def add_and_floor(a, random, unit):
    total, constant = fused(random, unit, a), unit.astype(np.float64) * 2.0**-102
    raised = constant + total  # exact, or so far beyond 6 that it does not matter
    nearest = raised.astype(np.float32)
    down = np.where(nearest > raised, np.nextafter(nearest, np.float32(-np.inf)), nearest)
    return (down - constant).astype(np.float32)


def magnitude_times(x, factor):
    return np.abs(x) * factor


def magnitude_pair(a):
    return a & np.uint32(0x7FFF7FFF)


def permute_bytes(a, b, selector):
    eight = (b.astype(np.uint64) << np.uint64(32)) | a
    out = np.zeros(np.broadcast_shapes(a.shape, selector.shape), np.uint32)
    for place in range(4):
        index = (selector >> np.uint32(4 * place)).astype(np.uint64) & np.uint64(7)
        byte = (eight >> (index * np.uint64(8))) & np.uint64(255)
        out |= byte.astype(np.uint32) << np.uint32(8 * place)
    return out


def bf16_bits(a):
    return a.astype(ml_dtypes.bfloat16).view(np.uint16).astype(np.uint32)


def pair(low, high):
    return bf16_bits(low) | (bf16_bits(high) << np.uint32(16))


def signed_products(low, high, signs, scales):
    def one(a, sign, scale):
        a = np.fmin(a.astype(ml_dtypes.bfloat16).astype(np.float32), np.float32(6))
        signed = a.view(np.uint32) | (sign & np.uint32(0x80000000))
        return signed.view(np.float32) * (scale & np.uint32(0xFFFF0000)).view(np.float32)

    sixteen = np.uint32(16)
    return pair(one(low, signs << sixteen, scales << sixteen), one(high, signs, scales))


def fused(a, b, c):
    """a * b + c in float32, rounded once: in float64 to odd, and then to float32."""
    product, c = a.astype(np.float64) * b.astype(np.float64), c.astype(np.float64)
    total = product + c
    part = total - product
    error = (product - (total - part)) + (c - part)
    towards = np.nextafter(total, np.copysign(np.inf, error))
    is_even = (total.view(np.int64) & 1) == 0
    return np.where((error != 0) & is_even, towards, total).astype(np.float32)


def larger_pair(a, b):
    def larger(a, b):
        return np.fmax(a.view(np.float32), b.view(np.float32))

    sixteen, upper = np.uint32(16), np.uint32(0xFFFF0000)
    return pair(larger(a << sixteen, b << sixteen), larger(a & upper, b & upper))


def reciprocal(a):
    return np.float32(1) / a


def e2m1_nibbles(magnitude, negative):
    codes = magnitude.astype(ml_dtypes.float4_e2m1fn).view(np.uint8).astype(np.uint32)
    return (codes & np.uint32(7)) | (negative.astype(np.uint32) << np.uint32(3))


def packed(nibbles):
    """The last operand of an instruction ends in the lowest bits."""
    return sum(code << np.uint32(4 * i) for i, code in enumerate(nibbles))


def nearest_quad(*values):
    """cvt.rn.satfinite.e2m1x2 twice."""
    return packed(e2m1_nibbles(np.fmin(np.abs(v), np.float32(6)), np.signbit(v)) for v in values)


def stochastic_quad(v0, v1, v2, v3, random):
    """cvt.rs.satfinite.e2m1x4 of {v3, v2, v1, v0}, in the words of the PTX ISA.

    The upper bytes of both halves of `rbits` are for the first two operands, the lower ones for
    the last two; a carry out of the sum of the random bits and the discarded bits rounds up.
    """
    rbits = permute_bytes(random, np.uint32(0), np.uint32(0x3120))
    codes = []
    for value, shift in ((v0, 0), (v1, 16), (v2, 8), (v3, 24)):
        magnitude = np.fmin(np.abs(value), np.float32(6)).astype(np.float64)
        gap = np.exp2(np.floor(np.log2(np.maximum(magnitude, 1)))) / 2
        whole, discarded = np.divmod(np.floor(magnitude / gap * 256), 256)
        whole += discarded + ((rbits >> np.uint32(shift)) & np.uint32(255)) >= 256
        codes.append(e2m1_nibbles(np.minimum(whole * gap, 6), np.signbit(value)))
    return packed(codes)


def nearest_e4m3_byte(a):
    return a.astype(ml_dtypes.float8_e4m3fn).view(np.uint8).astype(np.uint32)


# By a word of its text, what a piece of assembly does to its arguments.
INSTRUCTIONS = {
    "fma.rm.f32 sum": add_and_floor,
    "mul.rn.f32 $0": magnitude_times,
    "abs.bf16x2 $0": magnitude_pair,
    "rcp.rn.f32": reciprocal,
    "rcp.approx.ftz.f32": reciprocal,
    "prmt.b32 $0": permute_bytes,
    "cvt.rn.bf16x2.f32 $0": pair,
    "max.bf16x2 $0": larger_pair,
    "fma.rn.bf16x2 $0": signed_products,
    "cvt.rn.satfinite.e2m1x2.f32": nearest_quad,
    "cvt.rs.satfinite.e2m1x4.f32": stochastic_quad,
    "cvt.rn.satfinite.e4m3x2.f32": nearest_e4m3_byte,
}


def complete_the_interpreter() -> None:
    from triton import language as tl
    from triton.runtime import interpreter

    patch = interpreter._patch_lang_tensor

    def patch_tensor(tensor, scope):
        """An end of a loop's range is an array of one element, which NumPy takes for no number."""
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = patch_tensor
    builder = interpreter.InterpreterBuilder
    cast = builder.cast_impl
    bf16 = np.dtype(ml_dtypes.bfloat16)

    def cast_impl(self, src, dst_type):
        pair = (src.dtype.scalar, dst_type.scalar)
        if pair == (tl.float32, tl.bfloat16):
            data = src.data.astype(bf16).view(np.uint16)
        elif pair == (tl.bfloat16, tl.float32):
            data = src.data.view(bf16).astype(np.float32)
        else:
            return cast(self, src, dst_type)
        return interpreter.TensorHandle(data, dst_type.scalar)

    class Result:
        def __init__(self, data, dtype):
            self.data, self.dtype = data, dtype

        def get_result(self, _):
            return interpreter.TensorHandle(self.data, self.dtype)

    def inline_asm(self, asm, constraints, values, types, is_pure, pack):
        (instruction,) = [f for text, f in INSTRUCTIONS.items() if text in asm]
        return Result(instruction(*(v.data for v in values)), types[0].scalar)

    def create_fma(self, x, y, z):
        shape = np.broadcast_shapes(x.data.shape, y.data.shape, z.data.shape)
        arguments = (np.ascontiguousarray(np.broadcast_to(a.data, shape)) for a in (x, y, z))
        return interpreter.TensorHandle(fused(*arguments), z.dtype.scalar)

    def create_minnumf(self, a, b):
        return self.binary_op(a, b, np.fmin)

    patch_language = interpreter._patch_lang_core

    def patch_and_count_in_tensors(lang, scope):
        patch_language(lang, scope)

        def tensors(start, end, step, num_stages):
            for i in range(start.handle.data.item(), end, step):
                yield tl.tensor(interpreter.TensorHandle(np.int32([i]), tl.int32), tl.int32)

        scope.set_attr(lang, "range", tensors)

    interpreter._patch_lang_core = patch_and_count_in_tensors
    builder.cast_impl, builder.create_fma = cast_impl, create_fma
    builder.create_minnumf = create_minnumf
    builder.create_inline_asm = inline_asm


def serve() -> None:
    answers, sys.stdout = sys.stdout.buffer, sys.stderr
    complete_the_interpreter()
    while True:
        try:
            launch = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        try:
            answer = interpret(launch)
        except Exception as error:
            answer = f"{type(error).__name__}: {error}"
        pickle.dump(answer, answers)
        answers.flush()


if __name__ == "__main__":
    serve()

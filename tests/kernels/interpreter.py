"""Run the kernels' Python on the CPU: Triton's interpreter, as a process that serves launches.

The interpreter replaces Triton's language when TRITON_INTERPRET is set as Triton is imported, so
it lives in a process of its own. It computes in NumPy; what it lacks or does not round as a GPU
does is supplied here: casts to bf16, and the one instruction written as assembly.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

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
    grid: int
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
        grid = (launch.grid, 1, 1)
        Executor(kernel.rewrite(), kernel.arg_names, grid)(*memory, **launch.meta)
    return outputs


def complete_the_interpreter() -> None:
    import ml_dtypes
    from triton import language as tl
    from triton.runtime import interpreter

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

    class AddDown:
        def __init__(self, a, b):
            total = a.data.astype(np.float64) + b.data.astype(np.float64)
            nearest = total.astype(np.float32)
            below = np.nextafter(nearest, np.float32(-np.inf))
            data = np.where(nearest > total, below, nearest)
            self.result = interpreter.TensorHandle(data, a.dtype.scalar)

        def get_result(self, _):
            return self.result

    def inline_asm(self, asm, constraints, values, types, is_pure, pack):
        assert asm.startswith("add.rm.f32"), asm
        return AddDown(*values)

    builder.cast_impl = cast_impl
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

"""What a Triton call carries is read in both forms that jax-triton has given it."""

from __future__ import annotations

import zlib

import pytest

from nvfp4_jax.compiled.hlo import parse
from nvfp4_jax.compiled.kernels import TritonKernel, triton_kernel
from nvfp4_jax.compiled.marks import Mark
from nvfp4_jax.compiled.triton_ir import writes

PTX = '.version 8.7\n.visible .entry kernel( // "quoted" and \\ escaped\n'
IR = """\
module {
  tt.func public @kernel(%x: !tt.ptr<f32>, %out: !tt.ptr<f32>) attributes {noinline = false} {
    %a = tt.load %x : !tt.ptr<f32>
    %low = arith.constant 1065353216 : i32
    %bits = tt.bitcast %a : f32 -> i32
    %binade = arith.maxsi %bits, %low : i32
    %magic = tt.bitcast %binade : i32 -> f32
    %sum = arith.addf %a, %magic : f32
    %rounded = arith.subf %sum, %magic : f32
    tt.store %out, STORED : !tt.ptr<f32>
    tt.return
  }
}
"""


def field(number: int, content: bytes) -> bytes:
    size, head = len(content), bytes([number << 3 | 2])
    while size > 127:
        head, size = head + bytes([size & 127 | 128]), size >> 7
    return head + bytes([size]) + content


def payload(ir: str) -> bytes:
    kernel = field(1, b"kernel") + b"\x10\x04" + field(4, PTX.encode()) + field(5, ir.encode())
    return zlib.compress(field(1, field(1, kernel)))


def as_string(raw: bytes) -> str:
    return '"' + "".join(f"\\{byte:03o}" for byte in raw) + '"'


def as_attribute(raw: bytes) -> str:
    plain = [chr(b) if 32 <= b < 127 and chr(b) not in '"\\' else f"\\{b:02X}" for b in raw]
    return '{opaque = "' + "".join(plain).replace("\\5C", "\\\\") + '"}'


@pytest.mark.parametrize(
    ("target", "written"),
    [("triton_kernel_call", as_string), ("triton_kernel_call_ffi", as_attribute)],
)
def test_the_kernel_of_a_call(target, written):
    text = f"""\
ENTRY %main (x: f32[4]) -> f32[4] {{
  %x = f32[4]{{0}} parameter(0)
  ROOT %call = f32[4]{{0}} custom-call(%x), custom_call_target="{target}", backend_config=\
{written(payload(IR))}
}}
"""
    call = parse(text).instructions["main", "call"]
    assert triton_kernel(call) == TritonKernel("kernel", PTX, IR)


def test_what_it_writes_is_rounded_or_not():
    (rounded,) = writes(IR.replace("STORED", "%rounded"))
    assert (rounded.argument, rounded.marks) == (1, {Mark("e2m1", "nearest")})
    (plain,) = writes(IR.replace("STORED", "%a"))
    assert (plain.marks, plain.reads) == (set(), {0})

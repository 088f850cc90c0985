"""What a kernel's call carries: its name and the program itself, not what somebody says it does.

A Triton call holds the kernel's PTX, which is what runs, and the Triton IR it was made of, which
can be read (`triton_ir`); both compressed in a protocol buffer. A Mosaic call holds its module,
where the tensor-core instruction stands in plain letters.
"""

from __future__ import annotations

import codecs
import re
import zlib
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

from nvfp4_jax.compiled.hlo import Instruction

_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"')
_OPAQUE = re.compile(r'\bopaque = "([^"]*)"')  # quotes are escaped as \22
_ESCAPED = re.compile(rb"\\(\\|[0-9A-F]{2})")
TRITON_TARGETS = ("triton_kernel_call", "triton_kernel_call_ffi")  # jax-triton 0.3 and 0.4
MOSAIC_TARGETS = ("mosaic_gpu", "mosaic_gpu_v2")


class TritonKernel(NamedTuple):
    """A kernel as compiled: `ir` is Triton's, `ptx` what the GPU's assembler gets."""

    name: str
    ptx: str
    ir: str


def triton_kernel(call: Instruction) -> TritonKernel | None:
    """The kernel of a custom call; None for another kind of call, or a form not known here."""
    if call.target not in TRITON_TARGETS:
        return None
    return _decoded(call.config)


def is_mosaic(call: Instruction) -> bool:
    """Whether a custom call is a Mosaic GPU kernel."""
    return call.target in MOSAIC_TARGETS


@lru_cache(maxsize=4096)
def _decoded(config: str) -> TritonKernel | None:
    """jax-triton's call: {kernel call: {kernel: {name, ..., PTX, Triton IR, ...}}}, compressed."""
    raw = _payload(config)
    try:
        message = zlib.decompress(raw) if raw else b""
    except zlib.error:
        return None
    texts = [text.decode("latin-1") for text in _strings(message, depth=4)]
    names = [text for text in texts if text.isidentifier()]
    ptx = [text for text in texts if ".visible .entry" in text]
    ir = [text for text in texts if "tt.func public" in text]
    return TritonKernel(names[0], ptx[0], ir[0]) if names and ptx and ir else None


def _payload(config: str) -> bytes | None:
    """The bytes that a call carries: as a string, or as an attribute of a typed call."""
    if string := _QUOTED.match(config):
        raw, _ = codecs.escape_decode(string[1].encode())  # pyright: ignore[reportAttributeAccessIssue]
        return raw
    attribute = _OPAQUE.search(config)
    return attribute and _ESCAPED.sub(_unescaped, attribute[1].encode())


def _unescaped(found: re.Match[bytes]) -> bytes:
    return b"\\" if found[1] == b"\\" else bytes.fromhex(found[1].decode())


def _strings(message: bytes, depth: int) -> Iterator[bytes]:
    """Every length-delimited field of a protocol buffer, those of nested messages first."""
    for field in _fields(message):
        if depth and not field[:1].isalpha() and not field.startswith((b"//", b"#")):
            yield from _strings(field, depth - 1)
        yield field


def _fields(message: bytes) -> Iterator[bytes]:
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        kind = key & 7
        if kind == 2:
            length, at = _varint(message, at)
            if at + length > len(message):
                return  # not a message after all
            yield message[at : at + length]
            at += length
        elif kind == 0:
            _, at = _varint(message, at)
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
        else:
            return


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(message):
        byte = message[at]
        value, shift, at = value | (byte & 127) << shift, shift + 7, at + 1
        if byte < 128:
            break
    return value, at

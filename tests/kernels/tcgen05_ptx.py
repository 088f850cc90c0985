"""Read what PTX tells the tensor core: descriptors by the PTX ISA's tables, and addresses.

From "tcgen05.mma", instruction descriptor for .kind::mxf4nvf4 and shared memory descriptor
(PTX ISA 8.8); written from those tables, not from the compiler's source.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

# Name: (first bit, number of bits). Those not named are reserved and have to be zero.
INSTRUCTION = {
    "sparse": (2, 1),
    "b_scale_id": (4, 2),  # which bytes of a 32-bit column: with four scales, all
    "a_type": (7, 3),  # E2M1 is 1
    "b_type": (10, 2),
    "negate_a": (13, 1),
    "negate_b": (14, 1),
    "transpose_a": (15, 1),
    "transpose_b": (16, 1),
    "n_eighths": (17, 6),
    "scale_type": (23, 1),  # UE4M3 is 0, UE8M0 is 1
    "m_by_128": (27, 2),
    "a_scale_id": (29, 2),
    "k": (31, 1),  # 0 is 64
}
SHARED_MEMORY = {
    "address": (0, 14),  # in units of 16 bytes, as the offsets
    "leading_offset": (16, 14),
    "stride_offset": (32, 14),  # between groups of 8 rows
    # Bits 46 to 48 should be 1; Mosaic GPU leaves them 0 in all that it emits.
    "constant": (46, 3),
    "base_offset": (49, 3),
    "absolute_leading": (52, 1),
    "swizzle": (61, 3),  # 0 none, 2 of 128 bytes, 4 of 64, 6 of 32
}


def fields(value: int, table: dict[str, tuple[int, int]]) -> dict[str, int]:
    """The fields of a descriptor, all of whose other bits are zero."""
    found, left = {}, value
    for name, (first, bits) in table.items():
        mask = (1 << bits) - 1
        found[name] = value >> first & mask
        left &= ~(mask << first)
    assert left == 0, f"reserved bits {left:#x}"
    return found


@dataclass(frozen=True)
class Product:
    """One tcgen05.mma: its modifiers, descriptors, and columns of scales (from TMEM's base)."""

    modifiers: str
    instruction: dict[str, int]
    a: dict[str, int]
    b: dict[str, int]
    a_scale: int
    b_scale: int


_PRODUCT = re.compile(
    r"""add\.s32 \s a_desc_low, \s %\w+, \s (?P<a_low>\d+); \s+
        add\.s32 \s b_desc_low, \s %\w+, \s (?P<b_low>\d+); \s+
        mov\.b64 \s b_desc, \s {b_desc_low, \s (?P<b_high>\d+)}; \s+
        mov\.b64 \s a_desc, \s {a_desc_low, \s (?P<a_high>\d+)}; \s+
        tcgen05\.mma\.(?P<modifiers>[\w.:]+) \s \[%\w+\], \s a_desc, \s b_desc, \s
        (?P<idesc>%\w+), \s \[(?P<a_scale>%\w+)\], \s \[(?P<b_scale>%\w+)\]""",
    re.VERBOSE,
)


def products(ptx: str) -> list[Product]:
    """Every tcgen05.mma, in order; `address` of its operands counts from the stage."""
    made = []
    for match in _PRODUCT.finditer(ptx):
        low, high = ({x: int(match[f"{x}_{part}"]) for x in "ab"} for part in ("low", "high"))
        a, b = (fields(high[x] << 32 | low[x], SHARED_MEMORY) for x in "ab")
        instruction = fields(_constant(ptx, match["idesc"]), INSTRUCTION)
        scales = (column(ptx, match[name]) for name in ("a_scale", "b_scale"))
        made.append(Product(match["modifiers"], instruction, a, b, *scales))
    return made


def scale_copies(ptx: str) -> list[tuple[str, int]]:
    """(modifiers, first column) of every tcgen05.cp."""
    found = re.findall(r"tcgen05\.cp\.([\w.:]+) \[(%\w+)\]", ptx)
    return [(modifiers, column(ptx, register)) for modifiers, register in found]


def column(ptx: str, register: str) -> int:
    """How far a tensor memory address is from the base that the allocation gave."""
    total = 0
    while added := re.search(rf"add\.s32\s+{register}, (%\w+), (\d+);", ptx):
        register, total = added[1], total + int(added[2])
    assert re.search(rf"ld\.shared\.b32\s+{register},", ptx), f"{register} is no base"
    return total


def expected_bytes(ptx: str) -> list[int]:
    """What each arrival of a loading warp tells its barrier to expect, of all 32 lanes."""
    found = re.findall(r"mbarrier\.arrive\.expect_tx[\w.:]*\s+%\w+, \[%\w+\], (%\w+);", ptx)
    return [32 * _constant(ptx, register) for register in found]


def arrivals(ptx: str) -> list[int]:
    """The arrivals that each barrier is made for."""
    found = re.findall(r"mbarrier\.init[\w.:]*\s+\[%\w+\], (%\w+);", ptx)
    return [_constant(ptx, register) for register in found]


def _constant(ptx: str, register: str) -> int:
    values = re.findall(rf"mov\.b32\s+{register}, (-?\d+);", ptx)
    assert len(values) == 1, f"{register} is no constant"
    return int(values[0]) & 0xFFFFFFFF

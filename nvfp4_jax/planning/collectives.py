"""What devices tell each other in one run of a program: every collective, with its bytes.

What one device sends, of a collective among n that each hold `payload` bytes of operands:

    all-gather           payload (n - 1)
    reduce-scatter       payload (n - 1) / n
    all-reduce           payload (n - 1) / n  twice: scattered, then gathered
    all-to-all           payload (n - 1) / n
    collective-permute   payload

These are the least that a collective can do with, and what a ring does.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from nvfp4_jax.compiled.hlo import Instruction, Program
from nvfp4_jax.planning.groups import axes_of, parse_groups, parse_pairs, together
from nvfp4_jax.planning.sizes import bytes_of

_GROUPS = re.compile(r"replica_groups=(.*)")
_PAIRS = re.compile(r"source_target_pairs=(\{\{.*?\}\})")
KINDS = (
    "all-gather",
    "reduce-scatter",
    "all-reduce",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)


@dataclass(frozen=True)
class Collective:
    """One collective instruction.

    Attributes:
      name: of its instruction.
      kind: one of `KINDS`.
      axes: of the mesh, over which it goes.
      dtype: of what travels; several joined by a comma.
      group: devices that meet.
      in_domain: of these, how many NVLink joins.
      payload: bytes of operands on one device.
      runs: how often, in one run of the program.
      op_name: where it comes from.
    """

    name: str
    kind: str
    axes: tuple[str, ...]
    dtype: str
    group: int
    in_domain: int
    payload: int
    runs: int
    op_name: str

    @property
    def sent(self) -> float:
        """Bytes that one device sends, once."""
        share = (self.group - 1) / self.group
        times = {
            "all-gather": self.group - 1,
            "all-reduce": 2 * share,
            "reduce-scatter": share,
            "all-to-all": share,
            "ragged-all-to-all": share,
        }
        return self.payload * times.get(self.kind, 1)


def kind_of(i: Instruction) -> str | None:
    """Which collective an instruction is, or starts; None for any other, and for their ends."""
    kind = i.opcode.removesuffix("-start")
    return kind if kind in KINDS else None


def collective_in(program: Program, i: Instruction) -> Instruction | None:
    """The collective that an instruction is or starts, or that XLA made a kernel of its own of."""
    if kind_of(i):
        return i
    if i.opcode not in ("fusion", "fusion-start"):
        return None
    inside = program.roots.get(i.called[0], "")
    root = program.instructions.get((i.called[0], inside))
    return root if root and kind_of(root) else None


def collectives(program: Program, sizes: Mapping[str, int], domain: int) -> list[Collective]:
    """Every collective among more than one device, in the order of the text.

    Args:
      program: compiled for a mesh.
      sizes: of the mesh, by axis.
      domain: neighbours that NVLink joins.
    """
    found = (
        collective_of(program, i, sizes, domain)
        for i in program.instructions.values()
        if kind_of(i) and program.runs.get(i.computation)
    )
    return [one for one in found if one.group > 1]


def collective_of(
    program: Program, i: Instruction, sizes: Mapping[str, int], domain: int
) -> Collective:
    """The collective that an instruction is, or starts."""
    groups = _members(i, int(np.prod(list(sizes.values()))))
    operands = [array for n in range(len(i.operands)) for array in program.operand(i, n).arrays]
    return Collective(
        name=i.name,
        kind=kind_of(i) or i.opcode,
        axes=axes_of(groups, sizes),
        dtype=", ".join(dict.fromkeys(array.dtype for array in operands)),
        group=groups.shape[1],
        in_domain=together(groups, domain),
        payload=sum(map(bytes_of, operands)),
        runs=program.runs[i.computation],
        op_name=i.op_name,
    )


def _members(i: Instruction, devices: int) -> np.ndarray:
    if pairs := _PAIRS.search(i.attributes):
        return parse_pairs(pairs[1])
    found = _GROUPS.search(i.attributes)
    return parse_groups(found[1] if found else "{}", devices)

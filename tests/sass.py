"""Read the machine code that NVIDIA's assembler made of a kernel.

What a GPU really executes is in its SASS and nowhere else: PTX is lowered once more, and there
instructions are chosen, split and scheduled, and registers spilled. The disassembler comes with
Triton's wheel, so no CUDA toolkit and no GPU is needed.
"""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import triton.backends.nvidia

# As CUDA's own folder is laid out: bin/nvdisasm lies below it.
CUDA_ROOT = Path(triton.backends.nvidia.__file__).parent


@dataclass(frozen=True)
class Instruction:
    """`opcode` with its modifiers, such as UTCOMMA.2CTA.4X; `guard` such as @!P0 or empty."""

    address: int
    guard: str
    opcode: str
    operands: str


@dataclass(frozen=True)
class Program:
    """The instructions of one kernel; `labels` are the addresses that branches name."""

    instructions: tuple[Instruction, ...]
    labels: dict[str, int]

    def opcodes(self) -> Counter[str]:
        """How often each opcode with these modifiers occurs."""
        return Counter(i.opcode for i in self.instructions)

    def count(self, *words: str) -> int:
        """Instructions whose opcode has the first word as its name and the others as modifiers."""
        return len(self.find(*words))

    def find(self, *words: str) -> list[Instruction]:
        """The instructions that `count` counts."""

        def matches(opcode: str) -> bool:
            name, *modifiers = opcode.split(".")
            return name == words[0] and set(words[1:]) <= set(modifiers)

        return [i for i in self.instructions if matches(i.opcode)]

    def loop(self, *words: str) -> Program:
        """The innermost loop around the first instruction that `find` finds."""
        inside = self.find(*words)[0].address
        around = [(a, b) for a, b in self._loops() if a <= inside <= b]
        start, end = min(around, key=lambda loop: loop[1] - loop[0])
        kept = tuple(i for i in self.instructions if start <= i.address <= end)
        return Program(kept, self.labels)

    def _loops(self) -> list[tuple[int, int]]:
        """(first, last address) of what lies between each backward branch and its target."""
        backward = []
        for i in self.instructions:
            target = re.search(r"`\((\.L_\w+)\)", i.operands)
            if i.opcode.startswith("BRA") and target and self.labels[target[1]] < i.address:
                backward.append((self.labels[target[1]], i.address))
        return backward


_INSTRUCTION = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(@!?U?P\w+ )?\s*([A-Z][A-Z0-9_.a-z]*)\s*([^;]*)")
_LABEL = re.compile(r"^\s*(\.L_\w+):")


def parsed(text: str) -> Program:
    """A program from nvdisasm's text, with the schedule in front of each line or without."""
    instructions: list[Instruction] = []
    labels, waiting = {}, []
    for line in text.splitlines():
        if match := _LABEL.match(line):
            waiting.append(match[1])
        elif match := _INSTRUCTION.search(line):
            address, guard, opcode, operands = match.groups()
            labels |= dict.fromkeys(waiting, int(address, 16))
            waiting = []
            guard = (guard or "").strip()
            instructions.append(Instruction(int(address, 16), guard, opcode, operands.strip()))
    return Program(tuple(instructions), labels)


_ARCHITECTURE = 49  # its place in a cubin: the second byte of the ELF header's flags
_UNKNOWN = {103: 100}  # the wheel's disassembler is older than sm_103, which it reads as sm_100


def disassembled(cubin: bytes) -> Program:
    """The program of a cubin with one kernel, such as Triton's `compiled.asm["cubin"]`."""
    found = cubin[_ARCHITECTURE]
    known = bytes([_UNKNOWN.get(found, found)])
    cubin = cubin[:_ARCHITECTURE] + known + cubin[_ARCHITECTURE + 1 :]
    with TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        command = [CUDA_ROOT / "bin" / "nvdisasm", "--print-code", path]
        return parsed(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def assembled(ptx: str, architecture: str) -> tuple[bytes, str]:
    """The cubin of a PTX program for such as sm_103a, and the assembler's remarks on it.

    Triton's assembler may be older than the compiler that wrote the program, by more than this
    program needs; it would refuse the newer version number.
    """
    ptx = re.sub(r"^\.version .*", ".version 8.8", ptx, count=1, flags=re.MULTILINE)
    with TemporaryDirectory() as folder:
        source, cubin = Path(folder) / "kernel.ptx", Path(folder) / "kernel.cubin"
        source.write_text(ptx)
        assembler = CUDA_ROOT / "bin" / "ptxas-blackwell"
        command = [assembler, "--verbose", f"--gpu-name={architecture}", "-o", cubin, source]
        ran = subprocess.run(command, capture_output=True, text=True, check=True)
        return cubin.read_bytes(), ran.stderr


def spills(program: Program) -> int:
    """Instructions that read or write a thread's own memory: registers did not suffice."""
    return program.count("STL") + program.count("LDL")

"""Fails when the innermost loop of a hot kernel loads or stores vectors through the stack.

A tile whose accumulators do not all fit in registers still computes the right numbers, at half the speed; only the
machine code shows it.  Looked at are the innermost loops with at least four vector FMAs in the functions whose name
contains ``gemm_tile``, ``depthwise_row``, ``pixel_row``, ``pixel_back_row`` or ``weight_gradient_tile``.  Every object
of a vector ISA must have some, or nothing was checked.

Usage: check_spills.py --arch x86_64|aarch64 [--objdump OBJDUMP] OBJECT...
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

HOT = re.compile(r"gemm_tile|depthwise_row|pixel_row|pixel_back_row|weight_gradient_tile")
MINIMUM_FMAS = 4


@dataclass(frozen=True)
class Instruction:
    """One line of a disassembly."""

    address: int
    mnemonic: str
    operands: str


@dataclass(frozen=True)
class Arch:
    """How one processor family writes what this check looks for."""

    jump: re.Pattern[str]
    fma: re.Pattern[str]
    vector_register: re.Pattern[str]
    stack_access: re.Pattern[str]
    frame_setup: re.Pattern[str]  # makes the frame pointer a second name of the stack
    frame_access: re.Pattern[str]


ARCHES = {
    "x86_64": Arch(
        jump=re.compile(r"j\w+"),
        fma=re.compile(r"vfn?m(add|sub)\d+p[sd]"),
        vector_register=re.compile(r"%[xyz]mm\d"),
        stack_access=re.compile(r"\(%rsp[,)]"),
        frame_setup=re.compile(r"mov +%rsp,%rbp"),
        frame_access=re.compile(r"\(%rbp[,)]"),
    ),
    "aarch64": Arch(
        jump=re.compile(r"b|b\..+|cbn?z|tbn?z"),
        fma=re.compile(r"fml[as]"),
        vector_register=re.compile(r"\b[qdv]\d+\b"),
        stack_access=re.compile(r"\[sp\b"),
        frame_setup=re.compile(r"(mov|add) +x29, sp\b"),
        frame_access=re.compile(r"\[x29\b"),
    ),
}


def functions(listing: str) -> dict[str, list[Instruction]]:
    """The instructions of every function in the output of ``objdump -d -C --no-show-raw-insn``."""
    found: dict[str, list[Instruction]] = {}
    body: list[Instruction] = []
    for line in listing.splitlines():
        if header := re.match(r"[0-9a-f]+ <(.+)>:$", line):
            body = found.setdefault(header[1], [])
        elif match := re.match(r" *([0-9a-f]+):\s+(\S+)\s*(.*)", line):
            body.append(Instruction(int(match[1], 16), match[2], match[3]))
    return found


def innermost_loops(body: list[Instruction], arch: Arch) -> list[list[Instruction]]:
    """Bodies of the backward jumps that enclose no other backward jump's body."""
    spans = []
    for instruction in body:
        # "1c40 <name+0x40>", on aarch64 perhaps behind a register: "x0, 1c40 <name+0x40>".
        target = re.search(r"([0-9a-f]+) <", instruction.operands)
        if arch.jump.fullmatch(instruction.mnemonic) and target:
            start = int(target[1], 16)
            if body[0].address <= start <= instruction.address:
                spans.append((start, instruction.address))
    inner = [s for s in spans if not any(o != s and s[0] <= o[0] and o[1] <= s[1] for o in spans)]
    return [[i for i in body if start <= i.address <= end] for start, end in sorted(set(inner))]


def spills(body: list[Instruction], arch: Arch) -> tuple[int, list[Instruction]]:
    """The number of hot loops in one function and the vector accesses to the stack inside them."""
    stack = [arch.stack_access]
    if any(arch.frame_setup.match(f"{i.mnemonic} {i.operands}") for i in body):
        stack.append(arch.frame_access)
    loops = innermost_loops(body, arch)
    loops = [loop for loop in loops if sum(bool(arch.fma.match(i.mnemonic)) for i in loop) >= MINIMUM_FMAS]
    found = [
        i
        for loop in loops
        for i in loop
        if arch.vector_register.search(i.operands) and any(access.search(i.operands) for access in stack)
    ]
    return len(loops), found


def short(name: str) -> str:
    """A kernel's name without the namespaces and parameters that all of them share."""
    return re.sub(r"\(anonymous namespace\)::", "", name).split("(")[0]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", choices=sorted(ARCHES), required=True)
    parser.add_argument("--objdump", default="objdump")
    parser.add_argument("objects", nargs="+", type=Path)
    options = parser.parse_args()
    bad = 0
    for path in options.objects:
        if path.name.split(".")[0].endswith("_scalar"):
            continue  # no vectors, and made for tests
        command = [options.objdump, "-d", "-C", "--no-show-raw-insn", str(path)]
        listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        loops = 0
        spilled = 0
        for name, body in functions(listing).items():
            if not HOT.search(name):
                continue
            count, found = spills(body, ARCHES[options.arch])
            loops += count
            spilled += len(found)
            if found:
                first = f"{found[0].mnemonic} {found[0].operands}"
                print(f"{path.name}: {short(name)}: {len(found)} spills, the first at {found[0].address:x}: {first}")
        failed = spilled > 0 or loops == 0
        print(f"{path.name}: {loops} hot loops, {spilled} spills: {'FAILED' if failed else 'ok'}")
        bad += failed
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())

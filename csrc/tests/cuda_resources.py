"""Reads ``ptxas -v`` output: registers, shared memory and spills per kernel.

Fails on spills, and unless every log has exactly the kernels of a list: those that the emulation knows and has run.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Kernel:
    """What one compiled kernel needs; ``spills`` in bytes per thread, ``static_shared`` in bytes per block."""

    name: str
    registers: int
    spills: int
    static_shared: int


_ENTRY = re.compile(r"Compiling entry function '(\w+)'")
_SPILLS = re.compile(r"(\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers")
_SHARED = re.compile(r"(\d+) bytes smem")


def parse(text: str) -> list[Kernel]:
    """The kernels of one ``ptxas -v`` run, mangled names."""
    kernels = []
    name, spills = "", 0
    for line in text.splitlines():
        if match := _ENTRY.search(line):
            name = match[1]
        elif match := _SPILLS.search(line):
            spills = int(match[1]) + int(match[2])
        elif (match := _USED.search(line)) and name:
            shared = _SHARED.search(line)
            kernels.append(Kernel(name, int(match[1]), spills, int(shared[1]) if shared else 0))
            name = ""
    return kernels


def demangle(names: list[str]) -> list[str]:
    """Short readable names, as ``depthwise_kernel<Half, 8, 3, 1>``."""
    text = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True).stdout
    short = []
    for line in text.splitlines():
        line = re.sub(r"\(.*", "", line.replace("(bool)", "").replace("(int)", "").replace("mobilenet_ext::cuda::", ""))
        line = line.replace("void ", "").replace("__half", "half").replace("__nv_bfloat16", "bf16")
        short.append(line.strip())
    return short


def listed(path: Path) -> set[str]:
    """The kernels that ``test_cuda kernels`` printed, by the names that :func:`demangle` gives."""
    return {line.replace("Half", "half").replace("BFloat16", "bf16") for line in path.read_text().splitlines()}


def faults(log: Path, expected: set[str]) -> list[str]:
    """What is wrong with the kernels of one log, in sentences."""
    kernels = parse(log.read_text())
    names = demangle([kernel.name for kernel in kernels])
    found = [
        f"{log.name}: {name} spills {kernel.spills} bytes at {kernel.registers} registers"
        for name, kernel in zip(names, kernels, strict=True)
        if kernel.spills
    ]
    found += [f"{log.name}: {name} is compiled, but the emulation does not know it" for name in {*names} - expected]
    return found + [f"{log.name}: {name} is not compiled, but the emulation runs it" for name in expected - {*names}]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("logs", nargs="+", type=Path)
    parser.add_argument("--kernels", type=Path, required=True, help="the output of `test_cuda kernels`")
    arguments = parser.parse_args()
    expected, failures = listed(arguments.kernels), 0
    for log in arguments.logs:
        kernels, found = parse(log.read_text()), faults(log, expected)
        print("\n".join(found), end="\n" if found else "")
        failures += len(found) + (not kernels)
        most = max((kernel.registers for kernel in kernels), default=0)
        print(f"{log.name}: {len(kernels)} kernels, at most {most} registers, {len(found)} faults")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())

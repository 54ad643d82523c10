"""Instructions per vector multiply-add of whole blocks, counted by valgrind: a speed guard that noise cannot touch.

    python check_instructions.py --driver BUILD/csrc/tests/count_instructions [--update]

Each block runs once and twice under callgrind; the difference is one run without start, packing and first-call
costs. The table beside this file says how many instructions a vector multiply-add takes. Compilers differ by some per
cent, so the limit is 8 % above the figure; ``--update`` writes new figures. Valgrind knows no AVX-512, so AVX2 and the
scalar form are counted. Exit status 77: valgrind is missing or does not know this machine's instructions.
"""

import argparse
import re
import shutil
import subprocess
import sys
from pathlib import Path

TABLE = Path(__file__).with_name("instruction_counts.txt")
COUNTED = {"avx2": "", "scalar": "v2_28x28"}  # prefixes of block names: one scalar block tells enough
ALLOWANCE = 1.08
SKIPPED = 77


def counted(driver: str, isa: str, block: str, times: int) -> tuple[int, float]:
    """Instructions of a whole run of the driver, and the multiply-adds of one block."""
    command = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", driver, isa, block, str(times)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = re.search(r"Collected : (\d+)", done.stderr)
    if done.returncode or not found:
        raise RuntimeError(f"{' '.join(command)} failed ({done.returncode}):\n{done.stderr[-2000:]}")
    return int(found[1]), float(done.stdout)


def measure(driver: str) -> dict[str, float]:
    """``"isa block"`` to instructions per vector multiply-add."""
    listed = subprocess.run([driver], capture_output=True, text=True, check=True).stdout.split("\n")
    figures = {}
    for isa, block, width in (line.split() for line in listed if line):
        if isa not in COUNTED or not block.startswith(COUNTED[isa]):
            continue
        once, work = counted(driver, isa, block, 1)
        twice, _ = counted(driver, isa, block, 2)
        figures[f"{isa} {block}"] = (twice - once) / (work / int(width))
    return figures


def failures(figures: dict[str, float], allowed: dict[str, float]) -> list[str]:
    """What is wrong, a line each; a block without a figure is wrong as well."""
    result = [f"{key}: no figure in {TABLE.name}; run with --update" for key in figures if key not in allowed]
    result += [f"{key}: in {TABLE.name}, but not counted" for key in allowed if key not in figures]
    return result + [
        f"{key}: {figures[key]:.3f} instructions per vector multiply-add, {limit:.3f} is the figure, "
        f"{limit * ALLOWANCE:.3f} the limit"
        for key, limit in allowed.items()
        if key in figures and figures[key] > limit * ALLOWANCE
    ]


def read(text: str) -> dict[str, float]:
    """The table: ``isa block figure`` a line, ``#`` starts a comment."""
    lines = [line.split("#")[0].split() for line in text.split("\n")]
    return {f"{isa} {block}": float(figure) for isa, block, figure in (line for line in lines if line)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--driver", required=True)
    parser.add_argument("--update", action="store_true")
    arguments = parser.parse_args()
    if not shutil.which("valgrind"):
        print("valgrind is missing", file=sys.stderr)
        return SKIPPED
    figures = measure(arguments.driver)
    if not figures:
        print("no instruction set of this machine is counted", file=sys.stderr)
        return SKIPPED
    for key, figure in figures.items():
        print(f"{key:28} {figure:.3f}")
    if arguments.update:
        head = "# Instructions per vector multiply-add, g++ 12 (check_instructions.py --update)\n"
        TABLE.write_text(head + "".join(f"{key:28} {figure:.3f}\n" for key, figure in figures.items()))
        return 0
    wrong = failures(figures, read(TABLE.read_text() if TABLE.exists() else ""))
    print("\n".join(wrong), file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

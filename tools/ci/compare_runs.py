"""Fails unless a second pytest run passed every test that the first one passed and that needs no missing package.

Usage: compare_runs.py FIRST.xml SECOND.xml --minimum N [--missing torchvision timm ...]

Both files are pytest's JUnit reports.  A test may be skipped in the second run only with a reason that names one of the
packages or parts that a CPU build of torch does not bring, and the second run must have passed at least N tests.
"""

from __future__ import annotations

import argparse
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence

MISSING = ("torchvision", "timm", "onnxscript", "triton", "Triton", "torch with CUDA", "CUDA C++ kernels")


def outcomes(report: str) -> dict[str, str]:
    """Test id -> "passed", "failed" or the skip's reason; a module skipped whole has its dotted name as its id."""
    found = {}
    for case in ElementTree.parse(report).iter("testcase"):
        name = ".".join(part for part in (case.get("classname"), case.get("name")) if part)
        skipped = case.find("skipped")
        if skipped is not None:
            found[name] = f"skipped: {skipped.get('message') or ''} {skipped.text or ''}"
        else:
            found[name] = "failed" if case.find("failure") is not None or case.find("error") is not None else "passed"
    return found


def complaints(first: dict[str, str], second: dict[str, str], missing: Sequence[str], minimum: int) -> list[str]:
    """What keeps the second run from being accepted."""
    found = []
    excused = [name for name, outcome in second.items() if any(package in outcome for package in missing)]
    for name, outcome in first.items():
        if outcome != "passed" or second.get(name) == "passed":
            continue
        if not any(name == skip or name.startswith(skip + ".") for skip in excused):
            found.append(f"{name}: passed in the first run, {second.get(name, 'absent')} in the second")
    passed = sum(outcome == "passed" for outcome in second.values())
    if passed < minimum:
        found.append(f"{passed} tests passed in the second run; at least {minimum} must")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("first")
    parser.add_argument("second")
    parser.add_argument("--minimum", type=int, required=True)
    parser.add_argument("--missing", nargs="*", default=MISSING)
    options = parser.parse_args()
    first, second = outcomes(options.first), outcomes(options.second)
    found = complaints(first, second, options.missing, options.minimum)
    for complaint in found:
        print(complaint)
    passed = sum(outcome == "passed" for outcome in second.values())
    print(f"second run: {passed} tests passed of the {sum(o == 'passed' for o in first.values())} of the first run")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())

"""Fails when a per-ISA object defines a symbol that other objects could pick up, besides its one kernel table.

An inline function compiled with AVX-512 flags is emitted as a weak symbol; should the linker choose that copy for the
whole library, it crashes every older CPU.  So ``isa_<name>.cpp`` may define one global symbol, ``..._isa_<name>``.

Usage: check_symbols.py [--nm NM] OBJECT...
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path


def leaks(listing: str, isa: str) -> list[str]:
    """The complaints about one object, given the output of ``nm -C``; ``isa`` is its source's name, ``isa_avx2``."""
    visible = []
    for line in listing.splitlines():
        # "0000000000000000 D name"; undefined symbols carry no address, and their definitions stand elsewhere.
        match = re.match(r"[0-9a-f]+ (\S) (.+)", line)
        if match and (match[1].isupper() or match[1] in "uvwi"):
            visible.append((match[1], match[2]))
    table = re.compile(rf"(\w+::)*(\w+_)?{isa}")
    tables = [name for kind, name in visible if kind in "BDR" and table.fullmatch(name)]
    complaints = [f"{kind} {name}" for kind, name in visible if name not in tables]
    if len(tables) != 1:
        complaints.append(f"{len(tables)} kernel tables named ..._{isa}; there must be exactly one")
    return complaints


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nm", default="nm")
    parser.add_argument("objects", nargs="+", type=Path)
    options = parser.parse_args()
    bad = 0
    for path in options.objects:
        listing = subprocess.run([options.nm, "-C", str(path)], capture_output=True, text=True, check=True).stdout
        complaints = leaks(listing, path.name.split(".")[0])
        for complaint in complaints:
            print(f"{path}: {complaint}")
        bad += bool(complaints)
        print(f"{path.name}: {'FAILED' if complaints else 'ok'}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())

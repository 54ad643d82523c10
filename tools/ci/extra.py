"""Prints the requirements of one extra of pyproject.toml, a line each: `extra.py dev`."""

from __future__ import annotations

import re
import sys
from pathlib import Path


def requirements(extra: str) -> list[str]:
    """Reads the one-line list by pattern: tomllib is not in Python 3.10's standard library."""
    text = (Path(__file__).resolve().parents[2] / "pyproject.toml").read_text()
    section = text.split("[project.optional-dependencies]")[1].split("\n[")[0]
    match = re.search(rf"^{re.escape(extra)} = \[(.*)\]$", section, re.MULTILINE)
    if match is None:
        raise SystemExit(f"pyproject.toml has no extra {extra!r}")
    return re.findall(r'"([^"]+)"', match[1])


if __name__ == "__main__":
    print("\n".join(requirements(sys.argv[1])))

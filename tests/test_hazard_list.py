"""docs/hazards.md names tests that exist."""

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
ROWS = [
    line
    for line in (TESTS.parent / "docs" / "hazards.md").read_text().splitlines()
    if line.startswith("| ") and "`test_" in line
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.split("|")[1].strip()[:50])
def test_every_hazard_has_its_tests(row):
    cell = row.rstrip("| ").rsplit(" | ", 1)[1]
    files = cell.split("; ")
    assert files
    for part in files:
        name, _, tests = part.partition(": ")
        defined = re.findall(r"def (test_\w+)", (TESTS / name.strip("`")).read_text())
        names = re.findall(r"`(test_\w+)`", tests)
        assert names
        assert set(names) <= set(defined), name

"""The table of faults names tests that exist, and enough of them."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in (ROOT / "docs" / "faults.md").read_text().splitlines()
    if line.startswith("| ") and not line.startswith("| the fault ")
]


def test_every_row_has_a_fault_what_happens_and_a_test() -> None:
    assert len(ROWS) >= 30
    for row in ROWS:
        assert len(row) == 3, row
        assert all(row), row
    faults = [row[0] for row in ROWS]
    assert len({tuple(row) for row in ROWS}) == len(faults)


def test_every_test_that_the_table_names_exists() -> None:
    existing = {
        name
        for path in (ROOT / "tests").glob("*/test_*.py")
        for name in re.findall(r"^def (test_\w+)\(", path.read_text(), re.MULTILINE)
    }
    named = [re.fullmatch(r"`(test_\w+)`", row[2]) for row in ROWS]
    assert all(named), [row for row, name in zip(ROWS, named, strict=True) if not name]
    assert {name[1] for name in named if name} - existing == set()


def test_every_test_of_faults_is_in_the_table() -> None:
    named = {row[2].strip("`") for row in ROWS}
    for path in (ROOT / "tests" / "system").glob("test_faults*.py"):
        if path.name != Path(__file__).name:
            tests = set(re.findall(r"^def (test_\w+)\(", path.read_text(), re.MULTILINE))
            assert tests - named == set(), path.name

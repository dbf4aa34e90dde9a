"""Every row of the tables of mappings is named by a test, and every row that a test names is there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[3]
_ROW = re.compile(r"\bM\d+\.\d+\b")


def documented() -> list[str]:
    page = (ROOT / "docs" / "rules-and-mappings.md").read_text()
    return re.findall(r"^\| (M\d+\.\d+) \|", page, re.MULTILINE)


def named() -> set[str]:
    tests = [path for path in (ROOT / "tests").rglob("test_*.py") if path != Path(__file__)]
    return {row for path in tests for row in _ROW.findall(path.read_text())}


def test_every_row_is_named_by_a_test() -> None:
    assert [row for row in documented() if row not in named()] == []


def test_every_row_that_a_test_names_is_documented_once() -> None:
    rows = documented()
    assert len(rows) > 40
    assert len(rows) == len(set(rows))
    assert sorted(named() - set(rows)) == []

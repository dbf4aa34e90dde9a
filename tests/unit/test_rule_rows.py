"""Every row of docs/rules-and-mappings.md, on rules (R) and on mappings (M), is named by a test that holds it.

`python -m tests.unit.test_rule_rows` lists the others.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

TESTS = Path(__file__).parents[1]
PAGE = TESTS.parent / "docs" / "rules-and-mappings.md"
ROW = re.compile(r"^\| ([RM]\d+\.\d+) \|", re.MULTILINE)
NAME = re.compile(r"\b[RM]\d+\.\d+\b")
SECTIONS = {
    "R1": 18,
    "R2": 16,
    "R3": 8,
    "R4": 12,
    "R5": 8,
    "R6": 7,
    "R7": 9,
    "R8": 5,
    "M1": 13,
    "M2": 12,
    "M3": 15,
    "M4": 6,
    "M5": 2,
    "M6": 7,
    "M7": 3,
}
"""How many rows each table has: a table that is not found has none."""


def rows() -> list[str]:
    return ROW.findall(PAGE.read_text())


def named() -> dict[str, set[str]]:
    """Row → tests whose own text (docstring, parameters, body) names it."""
    found: dict[str, set[str]] = {}
    for path in sorted(TESTS.rglob("test_*.py")):
        if path == Path(__file__):
            continue
        source = path.read_text()
        if not NAME.search(source):
            continue
        lines = source.splitlines()
        for node in ast.parse(source).body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
                first = min([node.lineno, *(each.lineno for each in node.decorator_list)])
                for row in NAME.findall("\n".join(lines[first - 1 : node.end_lineno])):
                    found.setdefault(row, set()).add(f"{path.relative_to(TESTS)}::{node.name}")
    return found


def unnamed() -> list[str]:
    known = named()
    return [row for row in rows() if row not in known]


def test_every_row_is_named_by_a_test() -> None:
    assert unnamed() == []


def test_tests_name_rows_that_there_are() -> None:
    assert set(named()) <= set(rows())


def test_rows_are_numbered_without_gaps() -> None:
    assert rows() == [f"{section}.{number}" for section, count in SECTIONS.items() for number in range(1, count + 1)]


if __name__ == "__main__":
    print("\n".join(unnamed()))

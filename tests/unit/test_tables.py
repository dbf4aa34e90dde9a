"""Tables of the command line show what others have written as it is: it neither styles nor breaks them."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from tidegate.control import show
from tidegate.operators import show_status

HOSTILE = ["[bold]red[/bold]", "[/x]", "a:key:b", "\\[red]", "[link=http://x]y", "\\", "[", "a\x1b[31mb"]


@pytest.fixture
def console() -> Console:
    return Console(file=io.StringIO(), width=400, force_terminal=True, color_system="standard", legacy_windows=False)


def said(console: Console) -> list[list[str]]:
    """Cells of each line, without what the table itself styles."""
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    for code in ("0", "1", "3", "31", "32", "33"):
        text = text.replace(f"\x1b[{code}m", "")
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines() if "│" in line]


@pytest.mark.parametrize("hostile", HOSTILE)
def test_what_others_wrote_is_shown_as_it_is(console: Console, hostile: str) -> None:
    plain = hostile.replace("\x1b", "\N{REPLACEMENT CHARACTER}")
    numbers = dict.fromkeys(("sessions", "connections", "channels", "appends"), 0)
    rule: dict[str, Any] = {"rule": hostile, "topic": hostile, "reason": hostile, "partitions": [1], "behind": 1}
    core = {
        **{"node": hostile, "ready": True, "partitions": [], "links": [], **numbers},
        "parkedRules": [rule | {"since": 5, "catchingUp": False}],
        "remoteRules": [rule | {"cluster": hostile, "state": "parked"}],
    }
    edge = {"edge": hostile, "boot": hostile, "ageMs": 1, "alive": True, "cores": [hostile], "sessions": 1}
    away = {"url": hostile, "error": hostile}
    show_status({"cores": [core, away], "edges": [edge], "partitions": []}, console)
    table, away_row, edge_row, parked, remote = [cells for cells in said(console) if cells[0] == plain]
    assert (table[1], away_row[1]) == ("ready", f"no answer: {plain}")
    assert (edge_row[1], edge_row[4]) == (plain[:8], plain)
    assert (parked[1:3], parked[4]) == ([plain, plain], plain)
    assert (remote[1:4], remote[4]) == ([plain, plain, f"parked: {plain}"], plain)


@pytest.mark.parametrize("hostile", HOSTILE)
def test_names_in_lists_are_shown_as_they_are(console: Console, hostile: str) -> None:
    show(console, hostile, ["name", "more"], [[hostile, {"a": hostile}]])
    assert said(console)[-1][0] == hostile.replace("\x1b", "\N{REPLACEMENT CHARACTER}")
    assert isinstance(console.file, io.StringIO)
    assert hostile.replace("\x1b", "\N{REPLACEMENT CHARACTER}") in console.file.getvalue().splitlines()[0]

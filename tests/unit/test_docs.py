"""Documents that are made from code say what the code says; links lead somewhere; nothing names a machine."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from relay.model import limits
from tidegate.limits_doc import render

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/**/*.md")])


def test_limits_page_is_made_from_the_limits() -> None:
    assert (ROOT / "docs" / "limits.md").read_text() == render(), "make docs"


def test_every_limit_says_what_happens_at_it() -> None:
    bare = [line for line in render().splitlines() if line.startswith("| `") and line.endswith("|  |")]
    assert not bare
    assert limits.EdgeLimits().max_message_bytes == 65_536  # what client suites expect of a test app


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name}: {target}"

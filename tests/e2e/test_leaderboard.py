"""The example of the article, as a person sees it: `tidegate dev` and a browser, nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.support.product import Product, product

pytestmark = [pytest.mark.browser, pytest.mark.timeout(180)]

MOVES_WITHIN_MS = 40_000
ORDER = "[...document.querySelectorAll('#board > li')].map((row) => row.dataset.player)"


@pytest.fixture(scope="module")
def running() -> Iterator[Product]:
    with product("--demo") as found:
        yield found


@pytest.mark.parametrize("client", ["the SDK where it is served", "a plain WebSocket"])
def test_ten_rows_appear_and_their_order_changes(chromium, running, client):
    page = chromium.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    if client == "a plain WebSocket":
        page.route("**/ably.min.js", lambda route: route.fulfill(status=404))
    page.goto(f"{running.rest}/demo/")
    page.wait_for_function(f"{ORDER}.length === 10", timeout=MOVES_WITHIN_MS)
    first = page.evaluate(ORDER)
    page.wait_for_function(f"JSON.stringify({ORDER}) !== {json.dumps(json.dumps(first, separators=(',', ':')))}", timeout=MOVES_WITHIN_MS)

    scores = page.eval_on_selector_all("#board .score", "cells => cells.map(cell => Number(cell.textContent.replaceAll(/\\D/g, '')))")
    assert scores == sorted(scores, reverse=True)
    assert page.inner_text("#status") == "Live"
    assert errors == []
    if client == "a plain WebSocket":
        assert "plain WebSocket" in page.inner_text("footer")

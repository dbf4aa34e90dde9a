from __future__ import annotations

import asyncio

import httpx
import pytest

from relay.runtime.metrics import Metrics


def test_the_page_shows_what_was_counted() -> None:
    metrics = Metrics()
    metrics.counter("link_refused", "Links refused.", "reason").labels("expired").inc(2)
    metrics.gauge("clients", "Clients.").set(3)
    metrics.reading("table_fill", "Fill.", lambda: 0.5)
    metrics.histogram("publish_seconds", "Publish to ACK.").observe(0.003)

    async def fetch() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(metrics.app()), base_url="http://metrics") as client:
            return await client.get("/metrics")

    answer = asyncio.run(fetch())
    assert answer.status_code == 200
    assert 'tidegate_link_refused_total{reason="expired"} 2.0' in answer.text
    assert "tidegate_clients 3.0" in answer.text
    assert "tidegate_table_fill 0.5" in answer.text
    assert 'tidegate_publish_seconds_bucket{le="0.005"} 1.0' in answer.text


def test_a_name_stands_for_one_metric() -> None:
    metrics = Metrics()
    assert metrics.counter("a", "A.") is metrics.counter("a", "A.")
    with pytest.raises(TypeError, match="tidegate_a is a Counter"):
        metrics.gauge("a", "A.")

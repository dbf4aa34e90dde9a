"""Occupancy on two edges and two cores with a real Kafka, and what readers of `[meta]log` are told.

The same with 500 clients, and with processes killed and frozen, is `python -m tests.chaos.occupancy`.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator

import pytest

from tests.chaos.occupancy import occupancy, prepare
from tests.journeys.real import RealWorld
from tests.support.product import Product

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(180)]
CONNECTED, ATTACH, ATTACHED, MESSAGE = 4, 10, 11, 15


@pytest.fixture(scope="module")
def prepared(relay: Product) -> tuple[str, list[str]]:
    return prepare(relay, print, ("channel.message", "^lost:", "#{message.name}:#{channelName}"))


@pytest.fixture
def world(relay: Product) -> Iterator[RealWorld]:
    real = RealWorld(relay)
    yield real
    real.close()


def test_everybody_is_told_the_true_numbers_within_five_seconds(relay: Product, prepared: tuple[str, list[str]]) -> None:
    figures = occupancy(relay, 40, secrets.randbelow(1_000_000), (), rate=30.0, churn_s=4.0, lifecycle=False, prepared=prepared)
    print(figures)
    assert figures.wrong == []


def test_a_rule_that_leaves_out_records_says_so_on_the_log(prepared: tuple[str, list[str]], world: RealWorld) -> None:
    watchers = [world.client(key=prepared[0], edge=edge) for edge in (0, 1)]
    for watcher in watchers:
        watcher.gets(CONNECTED)
        watcher.sends(action=ATTACH, channel="[meta]log")
        watcher.gets(ATTACHED)
    assert world.rest("POST", "/channels/lost:1/messages", {"name": "no such topic!", "data": "secret"}, credential=prepared[0])[0] == 201
    for watcher in watchers:
        (message,) = watcher.gets(MESSAGE)["messages"]
        assert message["name"] == "rule.dropped"
        about = json.loads(message["data"])
        assert (about["reason"], about["error"]["code"]) == ("illegal_topic", 70000)
        assert "secret" not in message["data"]

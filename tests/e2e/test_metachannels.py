"""Occupancy, connections that come and go, and the log of an app, on two edges and two cores with a real Kafka.

Occupancy with 500 clients, and with processes killed and frozen, is `python -m tests.chaos.occupancy`.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic

from tests.chaos.occupancy import Api, occupancy, prepare
from tests.journeys.real import RealClient, RealWorld
from tests.support.product import Product

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(180)]
CONNECTED, CLOSE, ATTACH, ATTACHED, MESSAGE = 4, 7, 10, 11, 15


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


def watching(world: RealWorld, key: str, channel: str) -> list[RealClient]:
    """One on each edge."""
    watchers = [world.client(key=key, edge=edge) for edge in (0, 1)]
    for watcher in watchers:
        watcher.gets(CONNECTED)
        watcher.sends(action=ATTACH, channel=channel)
        watcher.gets(ATTACHED)
    return watchers


def test_connections_that_open_and_close_are_told_of_once(prepared: tuple[str, list[str]], world: RealWorld) -> None:
    watchers = watching(world, prepared[0], "[meta]connection.lifecycle")
    names = [f"visitor-{secrets.token_hex(4)}" for _ in range(6)]
    for number, name in enumerate(names):
        visitor = world.client(key=prepared[0], edge=number % 2, clientId=name)
        visitor.gets(CONNECTED)
        visitor.sends(action=CLOSE)
    for watcher in watchers:
        told: list[tuple[str, str]] = []
        while len(told) < 2 * len(names):
            for message in watcher.gets(MESSAGE)["messages"]:
                client_id = json.loads(message["data"]).get("clientId", "")
                if client_id in names:
                    told.append((client_id, message["name"]))
        assert len(set(told)) == len(told)
        for name in names:
            assert [event for visitor, event in told if visitor == name] == ["connection.opened", "connection.closed"]


def test_a_rule_that_leaves_out_records_says_so_on_the_log(prepared: tuple[str, list[str]], world: RealWorld) -> None:
    watchers = watching(world, prepared[0], "[meta]log")
    assert world.rest("POST", "/channels/lost:1/messages", {"name": "no such topic!", "data": "secret"}, credential=prepared[0])[0] == 201
    for watcher in watchers:
        (message,) = watcher.gets(MESSAGE)["messages"]
        assert message["name"] == "rule.dropped"
        about = json.loads(message["data"])
        assert (about["reason"], about["error"]["code"]) == ("illegal_topic", 70000)
        assert "secret" not in message["data"]


def test_a_mapping_that_waits_at_a_record_says_so_on_the_log(relay: Product, prepared: tuple[str, list[str]], world: RealWorld) -> None:
    """Once, whichever core has the partition, and to clients of both edges."""
    key, _ = prepared
    app, topic = key.partition(".")[0], f"poison-{secrets.token_hex(4)}"
    admin = AdminClient({"bootstrap.servers": relay.kafka})  # its answers go with it
    for made in admin.create_topics([NewTopic(topic, 1)]).values():
        made.result(10)
    watchers = watching(world, key, "[meta]log")
    mapping = {"topics": [topic], "channel": "x:#{value.missing}", "from": "earliest", "onFailedRecordMapping": "stop"}
    made_id = Api(relay).ask("POST", f"/apps/{app}/mappings", mapping)["id"]
    producer = Producer({"bootstrap.servers": relay.kafka})
    producer.produce(topic, key=b"secret", value=b'{"data": "secret"}')
    producer.flush(20)
    for watcher in watchers:
        (message,) = watcher.gets(MESSAGE)["messages"]
        assert message["name"] == "mapping.stopped"
        about = json.loads(message["data"])
        assert about.pop("error")["code"] == 70000
        assert about == {"mappingId": made_id, "reason": "missing_field", "topic": topic, "partition": 0, "offset": 0}
        assert "secret" not in message["data"]
    for watcher in watchers:
        watcher.gets_nothing()

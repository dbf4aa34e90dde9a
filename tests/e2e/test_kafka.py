"""Kafka both ways, with plain Kafka clients on the other side."""

from __future__ import annotations

import asyncio
import json
import ssl
import time
import urllib.request
from typing import Any

import pytest
from confluent_kafka import Consumer, Producer
from websockets.asyncio.client import connect

from tests.support.product import NodeScript, Product

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(120)]


def read_topic(brokers: str, topic: str, count: int, within_s: float = 30.0) -> list[Any]:
    consumer = Consumer(
        {
            "bootstrap.servers": brokers,
            "group.id": f"test-{time.time_ns()}",
            "auto.offset.reset": "earliest",
            "isolation.level": "read_committed",
        }
    )
    consumer.subscribe([topic])
    got: list[Any] = []
    deadline = time.monotonic() + within_s
    try:
        while len(got) < count and time.monotonic() < deadline:
            record = consumer.poll(0.2)
            if record is not None and record.error() is None:
                got.append(record)
        return got
    finally:
        consumer.close()


def publish_by_rest(relay: Product, channel: str, body: object) -> dict[str, Any]:
    request = urllib.request.Request(
        f"{relay.rest}/channels/{channel}/messages",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json", "Authorization": f"Bearer {relay.token}", "X-Ably-Version": "5"},
        method="POST",
    )
    with urllib.request.urlopen(request, timeout=15, context=ssl.create_default_context(cafile=relay.ca)) as answer:
        assert answer.status == 201
        assert answer.headers["Content-Type"] == "application/json"
        return json.load(answer)  # type: ignore[no-any-return]


@pytest.mark.node
def test_record_of_a_mapped_topic_arrives_at_the_sdk(relay: Product) -> None:
    channel = "mapped:mapped-topic:user-7"
    script = NodeScript("pubsub", relay, channel=channel, count=0)
    try:
        script.wait_for("ready")
        producer = Producer({"bootstrap.servers": relay.kafka})
        for n in range(20):
            producer.produce("mapped-topic", key=b"user-7", value=json.dumps({"n": n}).encode())
        producer.flush(10)
        script.wait_for("message", 30, data=19)
        assert [m["data"] for m in script.every("message")] == list(range(20))
    finally:
        script.stop()


def test_message_is_read_from_the_rules_topic_enveloped_with_key_and_headers(relay: Product) -> None:
    sent = publish_by_rest(relay, "ruled%3Aone", {"name": "greet", "data": "hello", "extras": {"headers": {"a": "b"}}})
    records = read_topic(relay.kafka, "ruled-topic", 1)
    assert len(records) == 1
    record = records[0]
    assert record.key() == b"ruled:one"
    assert dict(record.headers()) == {"content-type": b"application/json", "x-ably-version": b"1.2"}
    body = json.loads(record.value())
    assert body["source"] == "channel.message"
    assert body["channel"] == "ruled:one"
    assert body["appId"] == relay.key.partition(".")[0]
    assert body["ruleId"] == "rule-1"
    assert body["site"]
    assert abs(body["timestamp"] / 1000 - time.time()) < 60
    (message,) = body["messages"]
    assert (message["name"], message["data"], message["extras"]) == ("greet", "hello", {"headers": {"a": "b"}})
    assert message["id"] == sent["messageId"] or message["id"].startswith(sent["messageId"])
    assert "clientId" not in message


def test_one_idempotent_id_published_three_times_is_delivered_once(relay: Product) -> None:
    async def run() -> list[dict[str, Any]]:
        trust = ssl.create_default_context(cafile=relay.ca)
        got: list[dict[str, Any]] = []
        async with connect(f"{relay.url}/?accessToken={relay.token}&format=json&v=6", ssl=trust) as socket:
            assert json.loads(await socket.recv())["action"] == 4
            await socket.send(json.dumps({"action": 10, "channel": "idempotent"}))
            assert json.loads(await socket.recv())["action"] == 11
            bodies = await asyncio.gather(
                *(asyncio.to_thread(publish_by_rest, relay, "idempotent", {"id": "only-once", "data": "x"}) for _ in range(3))
            )
            assert len({json.dumps(body["serials"]) for body in bodies}) == 1
            await asyncio.to_thread(publish_by_rest, relay, "idempotent", {"data": "last"})
            while not got or got[-1]["messages"][0]["data"] != "last":
                got.append(json.loads(await asyncio.wait_for(socket.recv(), 10)))
        return [message for frame in got if frame["action"] == 15 for message in frame["messages"]]

    assert [message["data"] for message in asyncio.run(run())] == ["x", "last"]

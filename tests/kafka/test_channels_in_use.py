"""An edge, a core and a real broker: what clients do on channels comes out as occupancy and lifecycle, for readers and for rules; what a
Kafka connector sends comes in."""

from __future__ import annotations

import asyncio
import base64
import json
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka.admin import AdminClient, NewTopic
from websockets.asyncio.client import ClientConnection, connect

from tests.kafka.test_rules import committed
from tests.support.core_process import core_process, edge_of
from tidegate.kafka_local import LocalKafka

pytestmark = pytest.mark.kafka

ATTACH, ATTACHED, PRESENCE, MESSAGE, CONNECTED = 10, 11, 14, 15, 4
SECRET = "0123456789abcdef0123456789abcdef"
KEY = f"app.key:{SECRET}"
META = "[meta]channel.lifecycle"
SOURCES = ("occupancy", "lifecycle")
LIMITS = {"presence_grace_s": 3.0, "channel_close_s": 5.0}
APPS = [
    {
        "id": "app",
        "keys": [{"id": "key", "secret": SECRET, "capability": '{"[*]*":["*"]}'}],
        "rules": [
            {"id": source, "source": {"type": f"channel.{source}"}, "target": {"routing_key": f"{source}:#{{channelName}}"}}
            for source in SOURCES
        ],
    }
]


class Client:
    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.messages: list[dict[str, Any]] = []

    async def sends(self, **frame: Any) -> None:
        await self.socket.send(json.dumps(frame))

    async def gets(self, action: int) -> dict[str, Any]:
        """The next frame of that kind; messages on the way are kept."""
        async with asyncio.timeout(20):
            while True:
                frame: dict[str, Any] = json.loads(await self.socket.recv())
                if frame["action"] == MESSAGE:
                    self.messages += [message | {"channel": frame["channel"]} for message in frame["messages"]]
                if frame["action"] == action:
                    return frame

    async def until(self, condition: Callable[[], object]) -> None:
        while not condition():
            await self.gets(MESSAGE)


async def client(edge: str, *channels: str, **params: str) -> Client:
    query = "&".join(f"{name}={value}" for name, value in {"key": KEY, "v": "6", **params}.items())
    made = Client(await connect(f"ws://{edge}/?{query}"))
    await made.gets(CONNECTED)
    for channel in channels:
        await made.sends(action=ATTACH, channel=channel)
        await made.gets(ATTACHED)
    return made


def post(url: str, body: bytes, **headers: str) -> tuple[int, str, Any]:
    """As the connector does it: JSON, Basic, version 5."""
    basic = base64.b64encode(KEY.encode()).decode()
    known = {"Content-Type": "application/json", "Accept": "application/json", "Authorization": f"Basic {basic}", "X-Ably-Version": "5"}
    request = urllib.request.Request(url, data=body, headers=known | headers, method="POST")
    try:
        with urllib.request.urlopen(request, timeout=15) as answer:
            return answer.status, answer.headers["content-type"], json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, error.headers["content-type"], json.loads(error.read())


def test_occupancy_lifecycle_and_a_connectors_batches(tmp_path: Path) -> None:
    """R1.6, R1.7"""
    broker = LocalKafka(directory=tmp_path / "kafka")
    broker.start()
    try:
        admin = AdminClient({"bootstrap.servers": broker.address})
        for made in admin.create_topics([NewTopic(source, 2) for source in SOURCES]).values():
            made.result(30)
        with core_process(tmp_path, broker.address, apps=APPS, limits=LIMITS, dev=True) as core:
            core.until(lambda: core.answers("/readyz") == 200, 90)
            with edge_of(core) as edge:
                asyncio.run(story(edge))
            check(broker.address)
    finally:
        broker.stop()


async def story(edge: str) -> None:
    watcher = await client(edge, META)
    first = await client(edge, "room", clientId="ann")
    second = await client(edge, "room")
    await asyncio.sleep(2.5)
    await first.sends(action=PRESENCE, channel="room", msgSerial=0, presence=[{"action": 2}])
    await first.gets(PRESENCE)
    await asyncio.sleep(2.5)
    await second.socket.close()
    await asyncio.sleep(2.5)

    reader = await client(edge, "from kafka/1", "from kafka/2")
    value = "x" * 60_000
    specs = [
        {
            "channels": [f"from kafka/{number % 2 + 1}"],
            "messages": [{"name": str(number), "data": value, "extras": {"kafka": {"key": "k"}}}],
        }
        for number in range(100)
    ]
    claimed = base64.b64encode(b"kafka-connect-ably-example").decode()
    url = f"http://{edge}/messages?newBatchResponse=true"
    body = json.dumps([*specs, {"channels": [":bad"], "messages": [{}]}]).encode()
    assert len(body) > 6_000_000
    status, kind, answer = await asyncio.to_thread(post, url, body, **{"X-Ably-ClientId": claimed})
    assert (status, kind) == (201, "application/json")
    assert [each["failureCount"] for each in answer] == [0] * 100 + [1]
    assert answer[100]["results"][0]["error"]["code"] == 40010
    await reader.until(lambda: len(reader.messages) == 100)
    for place, channel in enumerate(("from kafka/1", "from kafka/2")):
        there = [message for message in reader.messages if message["channel"] == channel]
        assert [message["name"] for message in there] == [str(number) for number in range(place, 100, 2)]
        assert {message["clientId"] for message in there} == {"kafka-connect-ably-example"}
    status, _, answer = await asyncio.to_thread(post, f"http://{edge}/messages", body)
    assert (status, answer["error"]["code"]) == (413, 40009)
    status, _, answer = await asyncio.to_thread(post, url, b"[" + b" " * 9_000_000 + b"]")
    assert (status, answer["error"]["code"]) == (413, 40009)

    await reader.socket.close()
    await first.socket.close()
    channels = ("room", "from kafka/1", "from kafka/2")
    await watcher.until(lambda: len(watcher.messages) >= 6)
    opened = [(message["name"], json.loads(message["data"])["channelId"]) for message in watcher.messages]
    assert opened == [(name, channel) for channel in channels for name in ("channel.opened", "channel.region.active")]
    await watcher.until(lambda: len(watcher.messages) >= 12)
    await asyncio.sleep(2)  # for what should not come
    again = await client(edge, f"[?rewind=100]{META}")
    await again.until(lambda: len(again.messages) >= 12)
    closed = {(message["name"], json.loads(message["data"])["channelId"]) for message in again.messages[6:]}
    assert closed == {(name, channel) for channel in channels for name in ("channel.closed", "channel.region.inactive")}
    assert len(again.messages) == 12
    await asyncio.sleep(3)


def check(brokers: str) -> None:
    found = {source: [json.loads(each.value()) for each in committed(brokers, source)] for source in SOURCES}
    counted = []
    for envelope in found["occupancy"]:
        if envelope["channel"] == "room":
            metrics = envelope["data"]["status"]["occupancy"]["metrics"]
            counted.append((metrics["connections"], metrics["presenceMembers"]))
    distinct = [each for number, each in enumerate(counted) if not number or counted[number - 1] != each]
    assert distinct == counted
    assert counted[-1] == (0, 0)
    assert {(2, 0), (2, 1), (1, 1), (0, 1)} <= set(counted)
    lives: dict[str, list[str]] = {}
    for envelope in found["lifecycle"]:
        lives.setdefault(envelope["channel"], []).append(envelope["name"])
    assert lives == {channel: ["channel.opened", "channel.closed"] for channel in ("room", "from kafka/1", "from kafka/2")}

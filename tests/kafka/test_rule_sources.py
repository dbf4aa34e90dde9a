"""Rules on presence and lifecycle, and batches, on a real broker: each event comes out once, whatever happens to the owner."""

from __future__ import annotations

import asyncio
import json
import signal
from typing import Any

import msgspec
import pytest

from core.kafka import LogProducer
from core.lifecycle import CLOSED, OPENED, LifecycleBody, event_id
from core.occupancy_log import OccupancyBody
from core.rules import Rule, RuleConfig
from relay.model.channel import log_key, partition_of
from relay.model.message import Kind, Message, PresenceAction, PresenceItem, RecordBody
from relay.model.occupancy import METRICS
from tests.kafka.test_rules import committed, create, until
from tests.support.kafka import Kafka, kafka
from tests.support.owner_process import owner_process

pytestmark = pytest.mark.kafka

CHANNELS = 12
ROUNDS = 40


class Writer:
    """What happens on some channels: they open; members enter, update and leave or are gone; messages; they close."""

    def __init__(self, world: Kafka, producer: LogProducer) -> None:
        self.world, self.producer = world, producer
        self.number = 0
        self.present: set[tuple[str, str]] = set()
        self.presence: list[tuple[str, int, str]] = []
        """Channel, action and client of each change."""
        self.lifecycle: list[tuple[str, str]] = []
        self.occupancy: list[tuple[str, int]] = []
        """Channel and number of connections."""
        self.messages: list[tuple[str, int]] = []

    def append(self, channel: str, kind: Kind, value: bytes, publish_id: str) -> None:
        key = log_key("app", channel)
        self.producer.append(self.number, partition_of(key, self.world.log.partitions), key, value, kind, publish_id)
        self.number += 1

    def body(self, channel: str, kind: Kind, **fields: Any) -> None:
        body = RecordBody(id=f"conn:{self.number}", timestamp=1000, connection_id="conn", **fields)
        value, publish_id = msgspec.msgpack.encode(body), f"c:conn:{self.number}"
        self.append(channel, kind, value, publish_id)
        if self.number % 7 == 0:
            self.append(channel, kind, value, publish_id)  # once more, as after a lost connection

    def change(self, channel: str, action: PresenceAction, client: str) -> None:
        items = [PresenceItem(action=action, client_id=client, data=client)]
        self.body(channel, Kind.PRESENCE, presence=items, incarnation=1, edge="boot")
        if action == PresenceAction.LEAVE:
            if (channel, client) not in self.present:
                return  # shown to nobody
            self.present.discard((channel, client))
        else:
            action = action if (channel, client) in self.present else PresenceAction.ENTER
            self.present.add((channel, client))
        self.presence.append((channel, int(action), client))

    def life(self, channel: str, name: str, number: int, *, counts: bool = True) -> None:
        made = event_id(name, channel, number)
        self.append(channel, Kind.LIFECYCLE, msgspec.msgpack.encode(LifecycleBody(id=made, timestamp=1, name=name, n=number)), made)
        if counts:
            self.lifecycle.append((channel, name))

    def counted(self, channel: str, number: int) -> None:
        counts = (number % 5, *(0,) * (len(METRICS) - 1))
        body = OccupancyBody(id=f"{channel}:{number}", timestamp=1, n=number, counts=counts)
        for _ in range(2):  # by two cores that both believe to own it
            self.append(channel, Kind.OCCUPANCY, msgspec.msgpack.encode(body), f"o:{channel}:{number}")
        self.occupancy.append((channel, counts[0]))

    async def round(self, number: int) -> None:
        for each in range(CHANNELS):
            channel = f"room:{each}"
            self.life(channel, OPENED, number + 1)
            self.life(channel, OPENED, number + 1, counts=False)  # by two cores that both believe to own it
            for action in (PresenceAction.ENTER, PresenceAction.UPDATE):
                self.change(channel, action, f"client-{number}")
            self.body(channel, Kind.MESSAGE, messages=[Message(data=str(number)), Message(data=str(number))])
            self.messages += [(channel, number)] * 2
            self.change(channel, PresenceAction.LEAVE, f"client-{number - 1}")
            self.change(channel, PresenceAction.LEAVE, "nobody")
            self.counted(channel, number + 1)
            self.life(channel, CLOSED, number + 1)
        await asyncio.sleep(0.05)


def config(id: str, source: str, topic: str, mode: str = "single", **target: Any) -> dict[str, Any]:
    routing = {"routing_key": f"{topic}:#{{channelName}}"}
    return {"id": id, "request_mode": mode, "source": {"type": source}, "target": routing | target}


def by_channel(events: list[tuple[str, Any]]) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for channel, what in events:
        found.setdefault(channel, []).append(what)
    return found


def test_every_source_and_batches_once_and_in_order_while_an_owner_is_killed(kafka_brokers: str) -> None:
    """R1.3, R1.5, R1.6, R1.7, R1.16, R5.5, R5.7: one owner is killed within a transaction that it leaves open, its successor closed; a
    third one ends it."""

    async def story() -> None:
        async with kafka(kafka_brokers) as world:
            topics = {name: create(world, name) for name in ("presence", "lifecycle", "occupancy", "batch", "people")}
            fields = [
                config("presence", "channel.presence", topics["presence"]),
                config("lifecycle", "channel.lifecycle", topics["lifecycle"], enveloped=False, headers=[{"name": "team", "value": "web"}]),
                config("occupancy", "channel.occupancy", topics["occupancy"]),
                config("batch", "channel.message", topics["batch"], "batch"),
                config("people", "channel.presence", topics["people"], "batch"),
            ]
            rules = [Rule("app", msgspec.convert(each, RuleConfig)) for each in fields]
            producer: LogProducer = world.start(LogProducer)
            writer = Writer(world, producer)
            with owner_process(world, "core-1", fields, freeze_at=400) as killed:
                await killed.until(lambda: killed.last["ready"] and len(killed.last["owned"]) == 4)
                for number in range(ROUNDS // 2):
                    await writer.round(number)
                await killed.until(lambda: killed.stopped)
                second = world.owner(rules, core="core-2")
                killed.signal(signal.SIGKILL)
                await until(lambda: len(second.owned) == 4, 30)
            for number in range(ROUNDS // 2, ROUNDS * 3 // 4):
                await writer.round(number)
            await second.close()
            third = world.owner(rules, core="core-3")
            for number in range(ROUNDS * 3 // 4, ROUNDS):
                await writer.round(number)
            await until(lambda: not producer.unreported and len(third.owned) == 4)
            await until(lambda: third.written["app/lifecycle"] > 0)
            await asyncio.sleep(2)
            await third.close()
            assert not second.dropped
            assert not third.dropped

            found = {name: await asyncio.to_thread(committed, kafka_brokers, topic) for name, topic in topics.items()}
            wanted = by_channel([(channel, (action, client)) for channel, action, client in writer.presence])
            single = []
            for each in found["presence"]:
                envelope = json.loads(each.value())
                assert each.key() == envelope["channel"].encode()
                (item,) = envelope["presence"]
                single.append((envelope["channel"], (item["action"], item["clientId"])))
            assert by_channel(single) == wanted

            batched, records = [], 0
            for each in found["people"]:
                records += 1
                for event in json.loads(each.value())["items"]:
                    (item,) = event["data"]["presence"]
                    batched.append((event["data"]["channelId"], (item["action"], item["clientId"])))
            assert by_channel(batched) == wanted
            assert records < len(batched), "some share a record"

            lives = []
            for each in found["lifecycle"]:
                headers = dict(each.headers())
                assert headers["team"] == b"web"
                lives.append((json.loads(each.value())["channelId"], headers["x-ably-message-name"].decode()))
            assert by_channel(lives) == by_channel(writer.lifecycle)

            envelopes = [json.loads(each.value()) for each in found["occupancy"]]
            counted = [(each["channel"], each["data"]["status"]["occupancy"]["metrics"]["connections"]) for each in envelopes]
            assert by_channel(counted) == by_channel(writer.occupancy)

            messages = []
            for each in found["batch"]:
                items = json.loads(each.value())["items"]
                assert {item["data"]["channelId"].encode() for item in items} == {each.key()}
                messages += [(item["data"]["channelId"], int(item["data"]["messages"][0]["data"])) for item in items]
            assert by_channel(messages) == by_channel(writer.messages)

    asyncio.run(story())

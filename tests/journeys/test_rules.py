"""What rules make of the log is what clients were shown, whoever owns a partition and however often that changes.

Chance decides what members do, what is killed, where spans end and where an owner dies within one.
"""

from __future__ import annotations

import json
import random
from typing import Any

import msgspec
import pytest

from core import state
from core.fold import Fold
from core.lifecycle import LifecycleBody
from core.ownership import OwnedPartition, PartitionState
from core.rules import Batcher, Output, Rule, RuleConfig, RuleSet
from core.state import Checkpoint
from relay.model.message import Kind
from tests.journeys.test_journeys import ATTACH, ATTACHED, CLOSE, CONNECTED
from tests.journeys.test_presence import ENTER, LEAVE, PRESENCE, UPDATE
from tests.journeys.world import APP, STREAM, World

CHANNELS = [f"room:{n}" for n in range(4)]


def rules() -> RuleSet:
    made: list[dict[str, Any]] = [
        {"id": "one", "source": {"type": "channel.presence"}},
        {"id": "many", "source": {"type": "channel.presence"}, "request_mode": "batch"},
        {"id": "life", "source": {"type": "channel.lifecycle"}},
        {"id": "said", "request_mode": "batch"},
    ]
    target = {"target": {"routing_key": "out:#{channelName}"}}
    return RuleSet([Rule(APP, msgspec.convert(target | each, RuleConfig)) for each in made], site="core-1")


class Owners:
    """Those that a partition has one after the other. What is written is what was committed."""

    def __init__(self, world: World, number: int, chance: random.Random) -> None:
        self.log, self.number, self.chance = world.log.partitions[number], number, chance
        self.rules = rules()
        self.written: list[Output] = []
        self.kept: dict[bytes, bytes] = {}
        self.checkpoint: Checkpoint | None = None
        self.deaths = 0
        self._begin()

    def _begin(self) -> None:
        first = 0 if self.checkpoint is None else self.checkpoint.offset
        found = PartitionState(self.checkpoint, self.kept)
        self.fold = Fold(100_000, b"owner")
        self.owned = OwnedPartition(
            self.number, found, stream=STREAM.id, core="core-1", low=0, first=first, rules_from=0, time=0, channels=1_000, now=0.0,
            batcher=Batcher(3),
        )  # fmt: skip
        for record in self.log[:first]:
            if self.fold.see(self.number, record.key, record.id, record.timestamp, record.offset) is None:
                self.owned.look_back(record)

    def _commit(self) -> None:
        self.owned.combine()
        self.written += self.owned.outputs
        for key, value in self.owned.changes.items():
            if value is None:
                self.kept.pop(key, None)
            else:
                self.kept[key] = value
        read = state.decode(state.CHECKPOINT, self.owned.checkpoint())
        assert read is not None
        assert isinstance(read[1], Checkpoint)
        self.checkpoint = read[1]
        self.owned.done()

    def run(self) -> None:
        """To the end of the log."""
        while self.owned.position < len(self.log):
            record = self.log[self.owned.position]
            duplicate = self.fold.see(self.number, record.key, record.id, record.timestamp, record.offset) is not None
            assert self.owned.take(record, duplicate=duplicate, rules=self.rules, now=0.0) == []
            what = self.chance.random()
            if what < 0.2:
                self._commit()
            elif what < 0.25:
                self.deaths += 1
                self._begin()
        self._commit()


class Watcher:
    """Attached from the beginning to the end."""

    def __init__(self, world: World, edge: int) -> None:
        self.client = world.client(edge=edge)
        self.client.gets(CONNECTED)
        self.presence: dict[str, list[tuple[int, str, str, Any]]] = {name: [] for name in CHANNELS}
        self.messages: dict[str, list[str]] = {name: [] for name in CHANNELS}
        for name in CHANNELS:
            self.client.sends(action=ATTACH, channel=name)
            self.client.gets(ATTACHED, channel=name)

    def look(self) -> None:
        while self.client.has_more():
            frame = self.client.takes()
            if frame["action"] == PRESENCE:
                for item in frame["presence"]:
                    connection = item.get("connectionId") or frame["connectionId"]
                    self.presence[frame["channel"]].append((item["action"], connection, item["clientId"], item.get("data")))
            elif frame["action"] == 15:
                self.messages[frame["channel"]] += [item["data"] for item in frame["messages"]]


class Member:
    def __init__(self, world: World) -> None:
        self.client = world.client(edge=0)
        self.client.gets(CONNECTED)
        self.serial = 0
        for name in CHANNELS:
            self.client.sends(action=ATTACH, channel=name)
            while self.client.takes()["action"] != ATTACHED:
                pass

    def says(self, action: int, channel: str, **what: Any) -> None:
        if self.client.closed is None:
            self.client.sends(action=action, channel=channel, msgSerial=self.serial, **what)
            self.serial += 1


def happen(world: World, watcher: Watcher, chance: random.Random) -> int:
    """Returns how many messages were published."""
    members: list[Member] = []
    said = 0
    for _ in range(60):
        members = [member for member in members if member.client.closed is None]
        what = chance.random()
        channel = chance.choice(CHANNELS)
        if len(members) < 2 or what < 0.1:
            members.append(Member(world))
        elif what < 0.65:
            action = chance.choice((ENTER, ENTER, UPDATE, LEAVE))
            names = chance.sample("abc", chance.randint(1, 3))
            items = [{"action": action, "clientId": name, "data": f"{name}{chance.randrange(9)}"} for name in names]
            chance.choice(members).says(PRESENCE, channel, presence=items)
        elif what < 0.8:
            chance.choice(members).says(15, channel, messages=[{"data": f"{said}"}, {"data": f"{said + 1}"}])
            said += 2
        elif what < 0.9:
            chance.choice(members).client.drops()
        elif what < 0.93:
            leaving = chance.choice(members)
            leaving.client.sends(action=CLOSE)
            leaving.client.drops()
        elif what < 0.95:
            number = chance.randrange(2)
            world.kill_core(number)
            world.wait(1.0)
            world.start_core(number)
        elif what < 0.97:
            world.kill_edge(0)
        world.wait(chance.choice((0.0, 1.0, 20.0)))
        watcher.look()
    world.wait(60.0)
    watcher.look()
    return said


@pytest.mark.parametrize("seed", range(6))
def test_rules_write_what_clients_were_shown_each_once(seed: int) -> None:
    """R1.1, R1.3, R1.4, R1.5, R1.6, R1.16, R5.5, R5.7"""
    world, chance = World(edges=2, cores=2, seed=seed), random.Random(seed)
    watcher = Watcher(world, edge=1)
    happen(world, watcher, chance)
    assert sum(len(each) for each in watcher.presence.values()) > 20
    assert any(action == LEAVE for each in watcher.presence.values() for action, *_ in each)
    deaths = 0
    for _ in range(10):
        owners = [Owners(world, number, chance) for number in range(STREAM.partitions)]
        for each in owners:
            each.run()
        found = read([output for each in owners for output in each.written])
        assert found["one"] == watcher.presence
        assert found["many"] == watcher.presence
        assert found["said"] == watcher.messages
        assert found["life"] == lives(world)
        deaths += sum(each.deaths for each in owners)
    assert deaths > 10


def read(outputs: list[Output]) -> dict[str, dict[str, list[Any]]]:
    """Rule → channel → what its records say."""
    found: dict[str, dict[str, list[Any]]] = {name: {channel: [] for channel in CHANNELS} for name in ("one", "many", "said", "life")}
    for output in outputs:
        name, value = output.rule.partition("/")[2], json.loads(output.value)
        there = found[name][(output.key or b"").decode()]
        for body in value.get("items") or [value]:
            inner = body.get("data", body)
            if name == "life":
                assert len(inner["status"]["occupancy"]["metrics"]) == 8
                there.append(body["name"])
            elif name == "said":
                there += [item["data"] for item in inner["messages"]]
            else:
                there += [(item["action"], item["connectionId"], item["clientId"], item.get("data")) for item in inner["presence"]]
    return found


def lives(world: World) -> dict[str, list[str]]:
    """Channel → its events in the log, repetitions left out."""
    found: dict[str, dict[str, str]] = {channel: {} for channel in CHANNELS}
    for record in (record for records in world.log.partitions for record in records if record.kind == Kind.LIFECYCLE):
        body = msgspec.msgpack.decode(record.value, type=LifecycleBody)
        found[record.key.decode().partition(":")[2]].setdefault(record.id, body.name)
    return {channel: list(events.values()) for channel, events in found.items()}

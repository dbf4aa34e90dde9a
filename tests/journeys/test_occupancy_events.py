"""Occupancy in the log, as rules will see it, across two edges and two cores."""

from __future__ import annotations

from typing import Any

import pytest

from core.fold import Fold
from core.occupancy_log import PartitionOccupancy
from relay.model.message import Kind
from relay.model.occupancy import METRICS
from tests.journeys.world import World

ATTACH, ATTACHED, PRESENCE, ACK = 10, 11, 14, 1


def said(world: World) -> dict[str, list[dict[str, int]]]:
    """By channel: what the owner of each partition makes of its log."""
    found: dict[str, list[dict[str, int]]] = {}
    for number, records in enumerate(world.log.partitions):
        fold, view = Fold(1_000_000, b"test"), PartitionOccupancy()
        for record in records:
            if fold.see(number, record.key, record.id, record.timestamp, record.offset) is None and record.kind == Kind.OCCUPANCY:
                body = view.apply(record)
                if body is not None:
                    channel = record.key.partition(b":")[2].decode()
                    found.setdefault(channel, []).append(dict(zip(METRICS, body.counts, strict=True)))
    return found


def attached(world: World, channel: str, **more: Any) -> Any:
    client = world.client(**more)
    client.gets(4)
    client.sends(action=ATTACH, channel=channel)
    client.gets(ATTACHED)
    return client


def test_attachments_and_members_over_all_edges() -> None:
    world = World(edges=2, cores=2, occupancy_wanted=True)
    first = attached(world, "room", edge=0, clientId="ann")
    world.wait(3)
    second = attached(world, "room", edge=1)
    world.wait(3)
    first.sends(action=PRESENCE, msgSerial=0, channel="room", presence=[{"action": 2}])
    world.wait(3)
    second.drops()
    world.wait(3)
    first.drops()
    world.wait(30)
    counted = [(each["connections"], each["presenceMembers"]) for each in said(world)["room"]]
    assert counted == [(1, 0), (2, 0), (2, 1), (1, 1), (0, 1), (0, 0)]
    assert said(world).keys() == {"room"}


def test_nothing_is_written_that_no_rule_wants() -> None:
    world = World(edges=1, cores=1)
    attached(world, "room")
    world.wait(10)
    assert said(world) == {}


@pytest.mark.parametrize("seed", range(6))
def test_the_last_word_is_right_while_cores_and_edges_are_killed(seed: int) -> None:
    world = World(edges=2, cores=2, seed=seed, occupancy_wanted=True)
    clients: list[tuple[int, str, Any]] = []
    for _ in range(5):
        for _ in range(6):
            channel, edge = f"room-{world.random.randrange(4)}", world.random.randrange(2)
            if clients and world.random.random() < 0.4:
                _, _, client = clients.pop(world.random.randrange(len(clients)))
                client.drops()
            else:
                clients.append((edge, channel, attached(world, channel, edge=edge)))
            world.wait(world.random.choice([0.1, 1.0, 3.0]))
        victim = world.random.randrange(2)
        if world.random.random() < 0.5:
            world.kill_core(victim, run=False)
            world.run(world.random.randint(0, 100))
            world.start_core(victim)
        else:
            world.kill_edge(victim)
            clients = [each for each in clients if each[0] != victim]
        world.wait(5)
    world.wait(40)
    now = {channel: sum(each[1] == channel for each in clients) for channel in said(world)}
    assert {channel: states[-1]["connections"] for channel, states in said(world).items()} == now
    written = sum(len(states) for states in said(world).values())
    world.wait(60)
    assert sum(len(states) for states in said(world).values()) == written

"""Statistics, client to `tidegate.sessions` and back, in both worlds; then with cores and edges that die. Specification RSC6."""

from __future__ import annotations

import secrets
from typing import Any

import pytest

from relay.model.stats import interval_id
from tests.journeys.test_history import publisher, publishes
from tests.journeys.test_journeys import ATTACH, ATTACHED, MESSAGE, AnyWorld
from tests.journeys.world import World

VISIBLE_S = 11.0
"""Two reports: what was counted just after one comes with the next, and an edge's has a core in between."""
IN = "messages.inbound.realtime.messages.count"
OUT = "messages.outbound.realtime.messages.count"
IN_REST = "messages.inbound.rest.messages.count"


@pytest.fixture
def channel() -> str:
    return f"counted:{secrets.token_hex(4)}"


def this_month(world: AnyWorld, edge: int = 0) -> dict[str, Any]:
    status, found = world.rest("GET", "/stats?unit=month&limit=1", edge=edge)
    assert status == 200
    return found[0]["entries"] if found else {}


def grown(world: AnyWorld, before: dict[str, Any], edge: int = 0) -> dict[str, Any]:
    after = this_month(world, edge)
    return {name: after.get(name, 0) - before.get(name, 0) for name in (IN, OUT, IN_REST)}


def test_rsc6_what_was_published_and_delivered_is_counted_on_all_edges_and_cores(world: AnyWorld, channel: str) -> None:
    world.wait(VISIBLE_S)
    before = this_month(world)
    readers = [publisher(world, edge=edge) for edge in (0, 1)]
    for reader in readers:
        reader.sends(action=ATTACH, channel=channel)
        reader.gets(ATTACHED)
    clients = [publisher(world, edge=edge) for edge in (0, 1)]
    for client in clients:
        publishes(client, channel, 0, "a", "b")
    assert world.rest("POST", f"/channels/{channel}/messages", {"data": "c"}, edge=1)[0] == 201
    for reader in readers:
        for _ in range(3):
            reader.gets(MESSAGE)
    world.wait(VISIBLE_S)
    for edge in (0, 1):
        assert grown(world, before, edge) == {IN: 4, OUT: 10, IN_REST: 1}
    status, (running,), links = world.asks("GET", "/stats?unit=hour&limit=1")
    assert (status, running["unit"], "first" in links) == (200, "hour", True)
    assert running["inProgress"].startswith(running["intervalId"])


def test_what_a_suite_posts_is_paged() -> None:
    world = World(edges=2, cores=2)
    year = int(interval_id(world.now_ms)[:4]) - 1
    posted = [
        {"intervalId": f"{year}-02-03:15:0{minute}", "inbound": {"realtime": {"messages": {"count": count, "data": 100 * count}}}}
        for minute, count in ((3, 50), (4, 60), (5, 70))
    ]
    status, made = world.rest("POST", "/apps", {"keys": [{}]})
    assert status == 201
    key = made["keys"][0]["keyStr"]
    status, answer = world.rest("POST", "/stats", posted, credential=key)
    assert (status, answer) == (201, posted)
    path, seen = f"/stats?end={year}-02-03:15:05&limit=1", []
    while True:
        _, (found,), links = world.asks("GET", path, credential=key)
        seen.append(found["entries"]["messages.inbound.all.messages.data"])
        if "next" not in links:
            break
        path = links["next"].removeprefix(".")
    assert seen == [7000, 6000, 5000]
    _, (found,) = world.rest("GET", f"/stats?start={year}-02-03:15&end={year}-02-03:18&by=hour&direction=forwards", credential=key)
    assert found["entries"]["messages.inbound.all.messages.count"] == 180


@pytest.mark.parametrize("seed", range(3))
def test_a_core_that_is_killed_takes_no_more_with_it_than_it_had_not_written(seed: int, channel: str) -> None:
    world = World(edges=2, cores=2, seed=seed)
    client = publisher(world)
    for serial in range(5):
        publishes(client, channel, serial, "x")
    world.wait(VISIBLE_S)
    assert grown(world, {})[IN] == 5
    world.kill_core(seed % 2)
    publishes(client, channel, 5, "x")
    world.wait(VISIBLE_S)
    assert grown(world, {})[IN] == 6
    world.start_core(seed % 2)
    world.wait(VISIBLE_S)
    for edge in (0, 1):
        assert grown(world, {}, edge)[IN] == 6


@pytest.mark.parametrize("seed", range(3))
def test_nothing_counts_twice_while_cores_come_and_go(seed: int, channel: str) -> None:
    """Every publish is acknowledged, some are sent again, and each is in the statistics once at most; none that was there is lost."""
    world = World(edges=2, cores=2, seed=seed)
    client, reader = publisher(world), publisher(world, edge=1)
    reader.sends(action=ATTACH, channel=channel)
    reader.gets(ATTACHED)
    counted = 0
    for serial in range(12):
        client.sends(action=MESSAGE, channel=channel, msgSerial=serial, messages=[{"data": "x"}])
        if serial % 4 == 1:
            world.kill_core(serial // 4 % 2)
        elif serial % 4 == 3:
            world.start_core(serial // 4 % 2)
        world.wait(7.0)
        found = grown(world, {})[IN]
        assert counted <= found <= serial + 1
        counted = found
    assert counted >= 9

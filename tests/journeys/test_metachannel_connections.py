"""`[meta]connection.lifecycle`: every connection that opens and closes, once each, whichever edges and cores die; and `[meta]log`."""

from __future__ import annotations

import json
import secrets
from typing import Any

import pytest

from core.events import Noticed
from tests.journeys.real import RealWorld
from tests.journeys.world import APP, World

CONNECTED, CLOSE, ERROR, ATTACH, ATTACHED, MESSAGE = 4, 7, 9, 10, 11, 15
META = "[meta]connection.lifecycle"
OPENED, CLOSED = "connection.opened", "connection.closed"
Anything = World | RealWorld


@pytest.fixture
def world(request: pytest.FixtureRequest) -> Anything:
    """As others have it, but in the fake world cores tell of connections, too; real ones do unless they are told not to."""
    return World(edges=2, cores=2, connection_lifecycle=True)


def connected(world: Anything, **more: Any) -> tuple[Any, dict[str, Any]]:
    client = world.client(**more)
    return client, client.gets(CONNECTED)


def watching(world: Anything, channel: str = META, *, edge: int = 0) -> Any:
    client, _ = connected(world, edge=edge)
    client.sends(action=ATTACH, channel=channel)
    client.gets(ATTACHED, channel=channel)
    return client


def told(watcher: Any) -> tuple[str, dict[str, Any]]:
    (message,) = watcher.gets(MESSAGE)["messages"]
    assert message["encoding"] == "json"
    return message["name"], json.loads(message["data"])


def test_who_comes_and_who_goes(world: World) -> None:
    watchers = [watching(world, edge=edge) for edge in (0, 1)]
    assert told(watchers[0])[0] == OPENED  # the second of them
    bob, about = connected(world, edge=1, clientId="bob")
    opened = {"connectionId": about["connectionId"], "clientId": "bob", "keyName": f"{APP}.key", "transport": "web_socket"}
    for watcher in watchers:
        assert told(watcher) == (OPENED, opened)
    bob.sends(action=CLOSE)
    for watcher in watchers:
        assert told(watcher) == (CLOSED, opened | {"reason": "closed"})
    world.wait(300)
    for watcher in watchers:
        watcher.gets_nothing()


def test_one_that_is_lost_is_closed_when_it_cannot_be_resumed_any_more(world: World) -> None:
    watcher = watching(world)
    bob, about = connected(world, clientId="bob", edge=1)
    assert told(watcher)[0] == OPENED
    bob.drops()
    world.wait(60)
    back, again = connected(world, clientId="bob", resume=about["connectionDetails"]["connectionKey"])
    assert again["connectionId"] == about["connectionId"]
    watcher.gets_nothing()
    back.drops()
    world.wait(119)
    watcher.gets_nothing()
    world.wait(200)
    name, what = told(watcher)
    assert (name, what["connectionId"], what["reason"]) == (CLOSED, about["connectionId"], "expired")
    world.wait(300)
    watcher.gets_nothing()


def test_those_of_an_edge_that_died(world: World) -> None:
    watcher = watching(world, edge=0)
    ids = {connected(world, edge=1)[1]["connectionId"] for _ in range(3)}
    assert {told(watcher)[1]["connectionId"] for _ in ids} == ids
    world.kill_edge(1)
    world.wait(400)
    closed = [told(watcher) for _ in ids]
    assert {what["connectionId"] for _, what in closed} == ids
    assert {(name, what["reason"]) for name, what in closed} == {(CLOSED, "expired")}
    watcher.gets_nothing()


@pytest.mark.parametrize("seed", range(8))
def test_each_once_while_cores_are_killed(seed: int) -> None:
    world = World(edges=2, cores=3, seed=seed, connection_lifecycle=True)
    watcher = watching(world)
    ids = set()
    for _ in range(8):
        some = []
        for _ in range(3):
            client = world.client(edge=1)
            ids.add(client.gets(CONNECTED)["connectionId"])
            some.append(client)
            world.run(world.random.randint(0, 40))
        victim = world.random.randrange(3)
        world.kill_core(victim, run=False)
        for client in some:
            client.posts(action=CLOSE)
        world.run(world.random.randint(0, 200))
        world.start_core(victim)
        world.wait(world.random.choice([1, 12]))
    world.wait(300)
    found: list[tuple[str, str]] = []
    while watcher.has_more():
        frame = watcher.next()
        for message in frame.get("messages", ()):
            found.append((json.loads(message["data"])["connectionId"], message["name"]))
    assert len(found) == len(set(found))
    for connection in ids:
        assert [name for known, name in found if known == connection] == [OPENED, CLOSED], connection


def test_nothing_is_told_where_the_settings_say_so() -> None:
    world = World(edges=2, cores=2)
    watcher = watching(world)
    connected(world, edge=1)[0].sends(action=CLOSE)
    world.wait(10)
    watcher.gets_nothing()


def test_trouble_that_several_cores_notice_is_told_once(world: World) -> None:
    watcher = watching(world, "[meta]log", edge=1)
    about = {"error": {"code": 70000}, "ruleId": "out", "reason": "missing"}
    for core in world.cores:
        core.inbox.append(Noticed(APP, "rule.parked:out:missing:1", "rule.parked", about))
    world.wait(2)
    assert told(watcher) == ("rule.parked", about)
    watcher.gets_nothing()
    world.cores[1].inbox.append(Noticed(APP, "rule.parked:out:missing:2", "rule.parked", about))
    world.wait(2)
    assert told(watcher) == ("rule.parked", about)
    world.cores[0].inbox.append(Noticed("gone", "rule.parked:out:missing:3", "rule.parked", about))
    world.wait(2)
    watcher.gets_nothing()


def test_only_who_is_permitted(world: World) -> None:
    for channel in (META, "[meta]log"):
        ordinary, _ = connected(world, access_token=world.token(capability={"*": ["*"]}))
        ordinary.sends(action=ATTACH, channel=channel)
        assert ordinary.gets(ERROR, channel=channel)["error"]["code"] == 40160
        status, refused = world.rest("POST", f"/channels/{channel.replace('[', '%5B').replace(']', '%5D')}/messages", {"data": "x"})
        assert (status, refused["error"]["code"]) == (401, 40160)


@pytest.mark.parametrize("edge", [0, 1])
def test_to_ask_for_a_status_opens_a_channel(edge: int) -> None:
    world = World(edges=2, cores=2, seed=edge)
    watcher = watching(world, "[meta]channel.lifecycle")
    names = [f"asked-{n}-{secrets.token_hex(3)}" for n in range(6)]  # of partitions that this and that core owns
    for _ in range(3):
        for name in names:
            assert world.rest("GET", f"/channels/{name}", edge=edge)[1]["status"]["isActive"] is True
    world.wait(2)
    assert sorted(json.loads(watcher.gets(MESSAGE)["messages"][0]["data"])["channelId"] for _ in names) == sorted(names)
    watcher.gets_nothing()
    world.wait(70)
    for _ in names:
        assert [message["name"] for message in watcher.gets(MESSAGE)["messages"]] == ["channel.region.inactive", "channel.closed"]
    world.wait(70)
    watcher.gets_nothing()

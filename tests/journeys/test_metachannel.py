"""`[meta]channel.lifecycle`: every event once, in order, whoever owns the partitions."""

from __future__ import annotations

import json
import secrets
from typing import Any

import pytest

from core.lifecycle import OPENED
from relay.model.message import Kind
from relay.model.occupancy import METRICS
from tests.journeys.real import RealWorld
from tests.journeys.world import World

ATTACH, ATTACHED, DETACH, DETACHED, ERROR, MESSAGE, PRESENCE, NACK = 10, 11, 12, 13, 9, 15, 14, 2
SUBSCRIBE = 1 << 18
META = "[meta]channel.lifecycle"
Anything = World | RealWorld


def connected(world: Anything, **more: Any) -> Any:
    client = world.client(**more)
    client.gets(4)
    return client


def watching(world: Anything, *, edge: int = 0, channel: str = META) -> Any:
    client = connected(world, edge=edge)
    client.sends(action=ATTACH, channel=channel)
    frame = client.gets(ATTACHED, channel=channel)
    assert frame["flags"] & 0x36F0000 == SUBSCRIBE
    return client


def event_of(frame: dict[str, Any]) -> tuple[str, str, bool]:
    """Name, channel and whether it is active."""
    assert all(message["encoding"] == "json" for message in frame["messages"])
    both = {message["name"]: json.loads(message["data"]) for message in frame["messages"]}
    (name,) = both.keys() & {OPENED, "channel.closed"}
    assert list(both) == ([OPENED, "channel.region.active"] if name == OPENED else ["channel.region.inactive", "channel.closed"])
    about = both.pop(name)
    assert [*both.values()] == [about | {"region": "home", "isGlobalMaster": True}]
    assert set(about["status"]["occupancy"]["metrics"]) == set(METRICS)
    assert not frame.keys() & {"connectionId"}
    return name, about["channelId"], about["status"]["isActive"]


def events(client: Any, prefix: str, count: int) -> list[tuple[str, str, bool]]:
    """The next events of channels that are called so; other tests use other names, and may be heard, in part only if it is by `rewind`."""
    found: list[tuple[str, str, bool]] = []
    while len(found) < count:
        frame = client.gets(MESSAGE)
        if json.loads(frame["messages"][0]["data"])["channelId"].startswith(prefix):
            found.append(event_of(frame))
    return found


def test_channels_that_open_are_told_of_on_every_edge(world: Anything) -> None:
    prefix = f"life-{secrets.token_hex(4)}-"
    watchers = [watching(world, edge=0), watching(world, edge=1, channel="[?rewind=1]" + META)]
    user = connected(world, edge=1)
    user.sends(action=ATTACH, channel=f"{prefix}a")
    user.gets(ATTACHED)
    world.rest("POST", f"/channels/{prefix}b/messages", {"data": "x"})
    for watcher in watchers:
        assert sorted(events(watcher, prefix, 2)) == [("channel.opened", f"{prefix}a", True), ("channel.opened", f"{prefix}b", True)]
    world.rest("POST", f"/channels/{prefix}a/messages", {"data": "x"})
    world.wait(2)
    if not world.real:
        for watcher in watchers:
            watcher.gets_nothing()


def test_closing_comes_a_minute_after_the_last() -> None:
    world = World(edges=2, cores=2)
    watcher = watching(world)
    user = connected(world, edge=1)
    for _ in range(2):
        user.sends(action=ATTACH, channel="life")
        user.gets(ATTACHED)
        assert event_of(watcher.gets(MESSAGE)) == ("channel.opened", "life", True)
        user.sends(action=DETACH, channel="life")
        user.gets(DETACHED)
        world.wait(70)
        assert event_of(watcher.gets(MESSAGE)) == ("channel.closed", "life", False)
    watcher.gets_nothing()


def test_history_and_rewind(world: Anything) -> None:
    name = f"life-{secrets.token_hex(4)}"
    world.rest("POST", f"/channels/{name}/messages", {"data": "x"})
    for _ in range(50):
        path = f"/channels/{META.replace('[', '%5B').replace(']', '%5D')}/messages"
        status, past = world.rest("GET", path, edge=1)
        assert status == 200
        about = [message["name"] for message in past if json.loads(message["data"])["channelId"] == name]
        if about:
            break
        world.wait(0.1)
    assert about == ["channel.region.active", OPENED]
    watcher = connected(world)
    watcher.sends(action=ATTACH, channel=f"[?rewind=100]{META}")
    assert watcher.gets(ATTACHED)["flags"] & 2
    found: list[str] = []
    while len(found) < len(about):
        found += [message["name"] for message in watcher.gets(MESSAGE)["messages"] if json.loads(message["data"])["channelId"] == name]
    assert found == about[::-1]


def test_only_who_is_permitted_and_nobody_writes(world: Anything) -> None:
    ordinary = connected(world, access_token=world.token(capability={"*": ["*"]}))
    ordinary.sends(action=ATTACH, channel=META)
    assert ordinary.gets(ERROR, channel=META)["error"]["code"] == 40160
    writer = connected(world, access_token=world.token(capability={META: ["publish", "presence"]}, client_id="w"))
    writer.sends(action=ATTACH, channel=META)
    assert writer.gets(ERROR, channel=META)["error"]["code"] == 40160
    reader = connected(world, access_token=world.token(capability={"[meta]*": ["subscribe"]}, client_id="r"))
    reader.sends(action=ATTACH, channel=META)
    reader.gets(ATTACHED)
    everything = connected(world, clientId="w")
    everything.sends(action=ATTACH, channel="[meta]unheard.of")
    assert everything.gets(ERROR)["error"]["code"] == 40010
    everything.sends(action=ATTACH, channel=META)
    everything.gets(ATTACHED)
    everything.sends(action=MESSAGE, msgSerial=0, channel=META, messages=[{"data": "x"}])
    assert everything.gets(NACK, msgSerial=0)["error"]["code"] == 40160
    everything.sends(action=PRESENCE, msgSerial=1, channel=META, presence=[{"action": 2}])
    assert everything.gets(NACK, msgSerial=1)["error"]["code"] == 40160
    path = f"/channels/{META.replace('[', '%5B').replace(']', '%5D')}"
    assert world.rest("POST", f"{path}/messages", {"data": "x"})[1]["error"]["code"] == 40160
    assert world.rest("POST", "/messages", [{"channels": META, "messages": {}}])[1][0]["results"][0]["error"]["code"] == 40160
    for read in ("presence", "presence/history"):
        assert world.rest("GET", f"{path}/{read}")[1]["error"]["code"] == 40010
    assert world.rest("GET", path)[0] == 400


def test_a_metachannel_has_no_lifecycle_and_nobody_is_counted_on_it() -> None:
    world = World(edges=2, cores=2)
    watcher = watching(world)
    world.wait(130)
    watcher.gets_nothing()
    assert {record.key for records in world.log.partitions for record in records} == {b"shop:[meta]stats:minute"}
    assert not any("[meta]" in key for key, _ in world.log.sessions)


@pytest.mark.parametrize("seed", range(4))
def test_an_event_whose_owner_dies_before_it_has_shown_it(seed: int) -> None:
    world = World(edges=2, cores=2, seed=seed)
    watcher = watching(world)
    user = connected(world, edge=1)
    user.posts(action=ATTACH, channel="life")
    while not any(world.log.partitions):
        world.run(1)
    (partition,) = (number for number, records in enumerate(world.log.partitions) if records)
    world.kill_core(partition % 2)
    world.wait(2)
    assert [record.kind for records in world.log.partitions for record in records] == [Kind.LIFECYCLE, Kind.MESSAGE]
    assert event_of(watcher.gets(MESSAGE)) == ("channel.opened", "life", True)
    watcher.gets_nothing()


@pytest.mark.parametrize("seed", range(4))
def test_an_event_that_no_core_has_outlived_is_shown_by_the_next(seed: int) -> None:
    world = World(edges=2, cores=2, seed=seed)
    user = connected(world, edge=1)
    user.posts(action=ATTACH, channel="life")
    while not any(world.log.partitions):
        world.run(1)
    for core in (0, 1):
        world.kill_core(core, run=False)
    for core in (0, 1):
        world.start_core(core)
    world.wait(5)
    assert [record.kind for records in world.log.partitions for record in records].count(Kind.MESSAGE) == 1


@pytest.mark.parametrize("seed", range(8))
def test_each_event_once_while_cores_are_killed(seed: int) -> None:
    """Every event of the log is on the metachannel once, in the order of its channel, whichever cores die on the way."""
    world = World(edges=2, cores=3, seed=seed)
    watcher = watching(world, edge=1)
    number = 0
    for round_ in range(6):
        for _ in range(4):
            number += 1
            user = world.client(edge=0)
            user.gets(4)
            user.posts(action=ATTACH, channel=f"life-{number % 7}")
            world.posts("GET", f"/channels/life-{world.random.randrange(7)}", edge=world.random.randrange(2))
            world.run(world.random.randint(0, 60))
            if world.random.random() < 0.5:
                user.drops()
        victim = world.random.randrange(3)
        if world.cores[victim].alive:
            world.kill_core(victim, run=False)
            world.run(world.random.randint(0, 200))
            world.start_core(victim)
        world.wait(30 if round_ % 2 else 70)
    world.wait(15)
    told: list[tuple[str, str]] = []
    while watcher.has_more():
        frame = watcher.next()
        if frame["action"] == MESSAGE:
            name, channel, _ = event_of(frame)
            told.append((name, channel))
    for channel in {channel for _, channel in told}:
        names = [name for name, other in told if other == channel]
        assert names == [OPENED if index % 2 == 0 else "channel.closed" for index in range(len(names))], channel
    happened = {(record.key, record.id) for part in world.log.partitions for record in part if record.kind == Kind.LIFECYCLE}
    assert len(told) == len(happened)
    assert sorted({channel for _, channel in told}) == [f"life-{n}" for n in range(7)]

"""How many are on a channel, across two edges and two cores."""

from __future__ import annotations

import json
from typing import Any

from relay.model.message import Kind
from relay.model.occupancy import METRICS
from tests.journeys.real import RealWorld
from tests.journeys.world import World

ATTACH, ATTACHED, DETACH, DETACHED, ERROR, MESSAGE = 10, 11, 12, 13, 9, 15
Anything = World | RealWorld


def connected(world: Anything, **more: Any) -> Any:
    client = world.client(**more)
    client.gets(4)
    return client


def attached(world: Anything, channel: str, **more: Any) -> Any:
    fields = {name: more.pop(name) for name in ("params", "flags") if name in more}
    client = connected(world, **more)
    client.sends(action=ATTACH, channel=channel, **fields)
    client.gets(ATTACHED, channel=channel)
    return client


def metrics_of(frame: dict[str, Any]) -> dict[str, int]:
    (message,) = frame["messages"]
    assert (message["name"], message["encoding"]) == ("[meta]occupancy", "json")
    assert not frame.keys() & {"channelSerial", "connectionId"}
    assert frame["id"].endswith(":0")
    assert frame["timestamp"] > 0
    counts: dict[str, int] = json.loads(message["data"])["metrics"]
    return counts


def until(client: Any, wanted: dict[str, int]) -> dict[str, int]:
    """Further states of the channel until one has these counts: the last state always comes out."""
    for _ in range(10):
        found = metrics_of(client.gets(MESSAGE))
        if all(found.get(name) == count for name, count in wanted.items()):
            return found
    raise AssertionError((found, wanted))


def status(world: Anything, channel: str, **more: Any) -> dict[str, int]:
    answer, body = world.rest("GET", f"/channels/{channel}", **more)
    assert (answer, body["channelId"], body["status"]["isActive"]) == (200, channel, True), body
    counts: dict[str, int] = body["status"]["occupancy"]["metrics"]
    assert list(counts) == list(METRICS)
    return counts


def settled(world: Anything, channel: str, connections: int) -> dict[str, int]:
    """The status on both edges, once the counts of the last second are known."""
    for _ in range(20):
        found = [status(world, channel, edge=edge) for edge in (0, 1)]
        if all(counts["connections"] == connections for counts in found):
            assert found[0] == found[1]
            return found[0]
        world.wait(0.5)
    raise AssertionError(found)


def test_status_counts_attachments_of_every_edge_by_mode(world: Anything) -> None:
    assert set(status(world, "occ-status").values()) == {0}
    first = attached(world, "occ-status", edge=0)
    reader = attached(world, "occ-status", edge=1, params={"modes": "subscribe"})
    other_spelling = attached(world, "[?rewind=1]occ-status", edge=1, params={"modes": "publish,presence"})
    counts = settled(world, "occ-status", 3)
    assert [counts[name] for name in ("publishers", "subscribers", "presenceConnections", "presenceSubscribers")] == [2, 2, 2, 1]
    first.drops()
    reader.sends(action=DETACH, channel="occ-status")
    reader.gets(DETACHED)
    assert settled(world, "occ-status", 1)["publishers"] == 1
    other_spelling.drops()
    assert set(settled(world, "occ-status", 0).values()) == {0}


def test_status_needs_channel_metadata(world: Anything) -> None:
    token = world.token(capability={"*": ["subscribe", "publish", "history"]})
    answer, body = world.rest("GET", "/channels/occ-secret", credential=token)
    assert (answer, body["error"]["code"]) == (401, 40160)
    assert world.rest("GET", "/channels/%5Bmeta%5Dlog")[0] == 400


def test_an_attachment_that_asked_hears_of_every_change(world: Anything) -> None:
    watcher = attached(world, "occ-watch", params={"occupancy": "metrics"})
    assert until(watcher, {"connections": 1, "subscribers": 1})["presenceMembers"] == 0
    second = attached(world, "occ-watch", edge=1, params={"modes": "subscribe"})
    assert until(watcher, {"connections": 2})["publishers"] == 1
    second.sends(action=ATTACH, channel="occ-watch", params={"modes": "publish"})
    second.gets(ATTACHED)
    until(watcher, {"connections": 2, "publishers": 2, "subscribers": 1})
    second.drops()
    until(watcher, {"connections": 1, "publishers": 1})
    watcher.gets_nothing()


def test_the_param_is_echoed_and_changed_by_attaching_again(world: Anything) -> None:
    watcher = connected(world)
    watcher.sends(action=ATTACH, channel="occ-param", params={"occupancy": "metrics.publishers", "modes": "subscribe"})
    assert watcher.gets(ATTACHED)["params"] == {"occupancy": "metrics.publishers", "modes": "subscribe"}
    assert metrics_of(watcher.gets(MESSAGE)) == {"publishers": 0}
    publisher = attached(world, "occ-param", edge=1)
    assert metrics_of(watcher.gets(MESSAGE)) == {"publishers": 1}
    watcher.sends(action=ATTACH, channel="occ-param", params={"occupancy": "metrics.connections"})
    watcher.gets(ATTACHED, params={"occupancy": "metrics.connections"})
    assert until(watcher, {"connections": 2}) == {"connections": 2}
    watcher.sends(action=ATTACH, channel="occ-param")
    assert "params" not in watcher.gets(ATTACHED)
    publisher.drops()
    world.wait(3)
    watcher.gets_nothing()


def test_without_channel_metadata_the_param_is_dropped(world: Anything) -> None:
    client = connected(world, access_token=world.token(capability={"*": ["subscribe"]}))
    client.sends(action=ATTACH, channel="occ-dropped", params={"occupancy": "metrics", "echo": "false"})
    assert client.gets(ATTACHED)["params"] == {"echo": "false"}
    client.sends(action=ATTACH, channel="occ-dropped", params={"occupancy": "everything"})
    assert "params" not in client.gets(ATTACHED)
    world.wait(1.5)
    client.gets_nothing()


def test_occupancy_is_no_part_of_the_channel(world: Anything) -> None:
    watcher = attached(world, "occ-apart", params={"occupancy": "metrics"})
    until(watcher, {"connections": 1})
    assert world.rest("POST", "/channels/occ-apart/messages", {"name": "n", "data": "d"})[0] == 201
    assert watcher.gets(MESSAGE)["messages"][0]["name"] == "n"
    answer, page = world.rest("GET", "/channels/occ-apart/messages")
    assert (answer, [message["name"] for message in page]) == (200, ["n"])
    late = connected(world, edge=1)
    late.sends(action=ATTACH, channel="occ-apart", params={"rewind": "10"})
    late.gets(ATTACHED)
    assert late.gets(MESSAGE)["messages"][0]["name"] == "n"
    world.wait(1.5)
    late.gets_nothing()


def test_members_count_once_they_are_in_the_log(world: Anything) -> None:
    watcher = attached(world, "occ-members", params={"occupancy": "metrics.presenceMembers", "modes": "subscribe"})
    assert metrics_of(watcher.gets(MESSAGE)) == {"presenceMembers": 0}
    member = attached(world, "occ-members", edge=1, clientId="ann", params={"modes": "presence"})
    member.sends(action=14, channel="occ-members", msgSerial=0, presence=[{"action": 2}])
    assert metrics_of(watcher.gets(MESSAGE)) == {"presenceMembers": 1}
    assert status(world, "occ-members")["presenceMembers"] == 1
    member.sends(action=14, channel="occ-members", msgSerial=1, presence=[{"action": 3}])
    assert metrics_of(watcher.gets(MESSAGE)) == {"presenceMembers": 0}
    watcher.gets_nothing()


def test_binary_clients_and_two_spellings_each_get_their_own() -> None:
    world = World(edges=1, cores=1)
    client = connected(world, binary=True)
    for text in ("occ-two", "[?rewind=1]occ-two"):
        client.sends(action=ATTACH, channel=text, params={"occupancy": "metrics.connections"})
    world.wait(2)
    seen: dict[str, list[int]] = {}
    while client.has_more():
        frame = client.next()
        if frame["action"] == MESSAGE:
            seen.setdefault(frame["channel"], []).append(metrics_of(frame)["connections"])
    assert {text: counts[-1] for text, counts in seen.items()} == {"occ-two": 2, "[?rewind=1]occ-two": 2}


def test_a_core_that_dies_takes_no_count_with_it() -> None:
    for seed in range(8):
        world = World(edges=2, cores=2, seed=seed)
        watcher = attached(world, "occ-core", params={"occupancy": "metrics"})
        clients = [attached(world, "occ-core", edge=n % 2) for n in range(4)]
        world.kill_core(seed % 2)
        clients[0].drops()
        for _ in range(3):
            world.wait(1.0)
        left = (seed + 1) % 2
        assert world.cores[left].node._occupancy.connections(b"shop:occ-core") == 4
        clients[1].drops()
        world.start_core(seed % 2)
        world.wait(3.0)
        assert [core.node._occupancy.connections(b"shop:occ-core") for core in world.cores] == [3, 3]
        assert until(watcher, {"connections": 3})["publishers"] == 3


def test_the_counts_of_a_dead_edge_end_with_its_lease() -> None:
    world = World(edges=2, cores=2)
    watcher = attached(world, "occ-edge", edge=0, params={"occupancy": "metrics"})
    for _ in range(3):
        attached(world, "occ-edge", edge=1)
    world.wait(2.0)
    until(watcher, {"connections": 4})
    world.kill_edge(1)
    world.wait(5.0)
    assert [core.node._occupancy.connections(b"shop:occ-edge") for core in world.cores] == [4, 4]
    world.wait(10.0)
    assert [core.node._occupancy.connections(b"shop:occ-edge") for core in world.cores] == [1, 1]
    until(watcher, {"connections": 1})
    world.wait(900.0)
    kept = {key: value for key, value in world.log.sessions if key.startswith("counts:")}
    assert [key.split(":", 2)[2] for key, value in kept.items() if value is not None] == ["shop:occ-edge"]
    assert [len(core.node._occupancy) for core in world.cores] == [1, 1]
    world.start_core(0)
    assert world.cores[0].node._occupancy.connections(b"shop:occ-edge") == 1


def test_nothing_is_left_when_everybody_has_gone() -> None:
    world = World(edges=2, cores=2)
    clients = [attached(world, f"occ-gone-{n % 3}", edge=n % 2) for n in range(6)]
    for client in clients:
        client.drops()
    world.wait(120.0)
    assert [len(core.node._occupancy) for core in world.cores] == [0, 0]
    assert [len(edge.node._desk.occupancies) for edge in world.edges] == [0, 0]
    kept = dict(pair for pair in world.log.sessions if pair[0].startswith("counts:"))
    assert set(kept.values()) == {None}


# --- lifecycle


def lifecycle_of(world: World, channel: str) -> list[str]:
    """Ids of the events of a channel, repetitions included."""
    key = f"shop:{channel}".encode()
    return [record.id for records in world.log.partitions for record in records if record.key == key and record.kind == Kind.LIFECYCLE]


def test_a_channel_opens_and_closes_once_for_all_cores() -> None:
    world = World(edges=2, cores=2)
    first, second = attached(world, "life", edge=0), attached(world, "life", edge=1)
    assert lifecycle_of(world, "life") == ["opened:life:1"]
    first.drops()
    world.wait(100.0)
    second.drops()
    world.wait(50.0)
    assert world.rest("POST", "/channels/life/messages", {"name": "n"})[0] == 201
    world.wait(50.0)
    assert lifecycle_of(world, "life") == ["opened:life:1"]
    world.wait(15.0)
    assert lifecycle_of(world, "life") == ["opened:life:1", "closed:life:1"]
    world.rest("POST", "/channels/life/messages", {"name": "n"})
    assert lifecycle_of(world, "life")[2:] == ["opened:life:2"]


def test_events_of_the_lifecycle_are_shown_to_no_client() -> None:
    world = World(edges=1, cores=1)
    reader = attached(world, "life-hidden", params={"rewind": "10"})
    assert lifecycle_of(world, "life-hidden")
    reader.gets_nothing()
    assert world.rest("GET", "/channels/life-hidden/messages") == (200, [])


def test_a_dead_owner_takes_no_channel_with_it() -> None:
    for dead in (0, 1):
        world = World(edges=1, cores=2)
        clients = [attached(world, f"life-{n}") for n in range(8)]
        world.kill_core(dead)
        world.start_core(dead)
        for n, client in enumerate(clients):
            assert lifecycle_of(world, f"life-{n}") == [f"opened:life-{n}:1"]
            client.drops()
        world.wait(130.0)
        for n in range(8):
            assert list(dict.fromkeys(lifecycle_of(world, f"life-{n}"))) == [f"opened:life-{n}:1", f"closed:life-{n}:1"]

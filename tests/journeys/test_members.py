"""Presence from client to client, over edges and cores that come and go. Source: specification RTP; Ably protocol docs, 5."""

from __future__ import annotations

import secrets
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.model.presence import is_newer
from tests.journeys.real import RealWorld
from tests.journeys.test_journeys import ACK, ATTACH, ATTACHED, CLOSE, CONNECTED, attached
from tests.journeys.test_resume import key_of
from tests.journeys.world import Client, World

AnyWorld = World | RealWorld
DETACH, DETACHED, PRESENCE, SYNC = 12, 13, 14, 16
HAS_PRESENCE = 1
PRESENT, ENTER, LEAVE, UPDATE = 1, 2, 3, 4


@pytest.fixture
def channel() -> str:
    return f"presence:{secrets.token_hex(4)}"


def presence_of(world: AnyWorld, channel: str, query: str = "", *, edge: int = 0) -> list[dict[str, Any]]:
    status, body = world.rest("GET", f"/channels/{channel.replace(':', '%3A')}/presence{query}", edge=edge)
    assert status == 200, body
    return list(body)


def enters(client: Any, channel: str, serial: int, *members: str, action: int = ENTER, data: str = "x") -> None:
    client.sends(
        action=PRESENCE,
        channel=channel,
        msgSerial=serial,
        presence=[{"action": action, "clientId": member, "data": data} for member in members],
    )


def member(world: AnyWorld, channel: str, name: str, **options: Any) -> tuple[Any, dict[str, Any]]:
    """An attached client that has entered one member; with its CONNECTED."""
    client = world.client(**options)
    connected = client.gets(CONNECTED)
    client.sends(action=ATTACH, channel=channel)
    client.gets(ATTACHED)
    enters(client, channel, 0, name)
    return client, connected


def hears(client: Any, action: int, name: str) -> dict[str, Any]:
    frame = client.gets(PRESENCE)
    (item,) = frame["presence"]
    assert (item["action"], item["clientId"]) == (action, name), frame
    return {**item, "connectionId": item.get("connectionId", frame.get("connectionId")), "id": item.get("id", f"{frame.get('id')}:0")}


def test_rtp8_a_member_is_seen_on_the_other_edge_and_over_rest_until_its_close(world: AnyWorld, channel: str) -> None:
    watcher = attached(world, channel, edge=1)
    client, connected = member(world, channel, "ann", edge=0)
    item = hears(watcher, ENTER, "ann")
    assert (item["connectionId"], item["data"]) == (connected["connectionId"], "x")
    assert item["id"].startswith(f"{connected['connectionId']}:0")
    for edge in (0, 1):
        (found,) = presence_of(world, channel, edge=edge)
        assert (found["action"], found["clientId"], found["connectionId"]) == (PRESENT, "ann", connected["connectionId"])
    client.sends(action=CLOSE)
    leave = hears(watcher, LEAVE, "ann")
    assert leave["data"] == "x"
    assert not leave["id"].startswith(connected["connectionId"])
    assert presence_of(world, channel) == []


def test_6_a_resume_on_the_other_edge_keeps_the_member_and_tells_nobody(world: AnyWorld, channel: str) -> None:
    watcher = attached(world, channel, edge=1)
    client, connected = member(world, channel, "ann", edge=0)
    hears(watcher, ENTER, "ann")
    client.drops()
    again = world.client(edge=1, resume=key_of(connected))
    assert again.gets(CONNECTED)["connectionId"] == connected["connectionId"]
    world.wait(18)
    assert [found["clientId"] for found in presence_of(world, channel)] == ["ann"]
    watcher.gets_nothing()
    again.sends(action=CLOSE)
    hears(watcher, LEAVE, "ann")


def test_5_4_remain_present_for_is_how_long_a_dropped_member_stays(world: AnyWorld, channel: str) -> None:
    client, _ = member(world, channel, "ann", edge=0, remainPresentFor="2000")
    world.wait(0.5)
    client.drops()
    world.wait(0.5)
    assert [found["clientId"] for found in presence_of(world, channel)] == ["ann"]
    world.wait(4)
    assert presence_of(world, channel) == []


# --- only where the clock can be turned, and processes killed at any step


class Follower:
    """What an SDK makes of what it is told: the set of one channel. Source: specification RTP2, RTP18, RTP19."""

    def __init__(self, world: World, edge: int) -> None:
        self.world = world
        self.members: dict[tuple[str, str], dict[str, Any]] = {}
        self.syncing: set[tuple[str, str]] | None = None
        self.events: list[tuple[int, str]] = []
        self.client = world.client(edge=edge, heartbeats="false")
        self.client.gets(CONNECTED)
        self.client.sends(action=ATTACH, channel="c")

    def listens(self) -> None:
        while self.client.has_more():
            frame = self.client.next()
            if frame["action"] == ATTACHED:
                self.syncing = set(self.members)
                if not frame["flags"] & HAS_PRESENCE:
                    self._synced()
            elif frame["action"] in (PRESENCE, SYNC):
                if frame["action"] == SYNC and self.syncing is None:
                    self.syncing = set(self.members)
                for index, item in enumerate(frame["presence"]):
                    self._takes(frame, index, item)
                if frame["action"] == SYNC and frame.get("channelSerial", ":").endswith(":"):
                    self._synced()

    def _takes(self, frame: dict[str, Any], index: int, item: dict[str, Any]) -> None:
        connection = item.get("connectionId", frame.get("connectionId"))
        place = (connection, item["clientId"])
        made = {"id": item.get("id", f"{frame.get('id')}:{index}"), "timestamp": item.get("timestamp", frame.get("timestamp"))}
        if self.syncing is not None:
            self.syncing.discard(place)
        known = self.members.get(place)
        if known is not None:
            synthesized = not all(one["id"].startswith(connection) for one in (made, known))
            newer = made["timestamp"] >= known["timestamp"] if synthesized else is_newer(made["id"], known["id"], connection)
            if not newer:
                return
        if item["action"] == LEAVE:
            if self.members.pop(place, None) is not None:
                self.events.append((LEAVE, item["clientId"]))
        else:
            if known is None:
                self.events.append((ENTER, item["clientId"]))
            self.members[place] = made

    def _synced(self) -> None:
        for place in self.syncing or ():
            self.events.append((LEAVE, place[1]))
            del self.members[place]
        self.syncing = None


class Guest:
    """A client with one member, that resumes, attaches and enters again as SDKs do (RTP17g, RTP17i)."""

    def __init__(self, world: World, number: int, edge: int) -> None:
        self.world = world
        self.name = f"guest-{number}"
        self.connection = self.key = ""
        self.serial = 0
        self.member: dict[str, Any] | None = None
        """What was entered, under the id that it was acknowledged under."""
        self.unanswered: dict[int, list[dict[str, Any]]] = {}
        self.queued: list[list[dict[str, Any]]] = []
        self.socket: Client | None = None
        self.ended = False
        self.wanted = False
        self.comes(edge)

    def comes(self, edge: int) -> None:
        more = {"resume": self.key} if self.key else {}
        params = {"v": "6", "key": "shop.key:" + "0123456789abcdef" * 2, "heartbeats": "false", **more}
        self.socket = Client(self.world, self.world.edges[edge], False, params)
        self.attached = False

    def drops(self) -> None:
        self.listens()
        if self.socket is not None:
            self.socket.leaves()
            self.socket = None

    def closes(self) -> None:
        self.listens()
        if self.socket is not None and self.socket.closed is None and self.connection:
            self.socket.posts(action=CLOSE)
            self.ended = True

    def does(self, action: int) -> None:
        self.listens()
        self.wanted = action != LEAVE
        if not self.wanted:
            self.member = None
        item: dict[str, Any] = {"action": action, "clientId": self.name}
        self._sends([item])

    def _sends(self, items: list[dict[str, Any]]) -> None:
        if self.attached and self.socket is not None and self.socket.closed is None:
            self.unanswered[self.serial] = items
            self.socket.posts(action=PRESENCE, channel="c", msgSerial=self.serial, presence=items)
            self.serial += 1
        else:
            self.queued.append(items)

    def listens(self) -> None:
        while self.socket is not None and self.socket.has_more():
            frame = self.socket.next()
            match frame["action"]:
                case 4:
                    if frame["connectionId"] != self.connection:
                        self.queued = [*self.unanswered.values(), *self.queued]
                        self.connection, self.serial, self.unanswered = frame["connectionId"], 0, {}
                    self.key = key_of(frame)
                    self.socket.posts(action=ATTACH, channel="c")
                    for serial, items in self.unanswered.items():
                        self.socket.posts(action=PRESENCE, channel="c", msgSerial=serial, presence=items)
                case 11 if not self.attached:
                    self.attached = True
                    again, queued, self.queued = self.member, self.queued, []
                    if again is not None and not again["id"].startswith(f"{self.connection}:"):
                        again = {name: value for name, value in again.items() if name != "id"}
                    for items in [*([] if again is None else [[again]]), *queued]:
                        self._sends(items)
                case 1:
                    for serial in range(frame["msgSerial"], frame["msgSerial"] + frame["count"]):
                        (item,) = self.unanswered.pop(serial)
                        made = {"action": ENTER, "clientId": self.name, "id": item.get("id", f"{self.connection}:{serial}:0")}
                        self.member = made if self.wanted and item["action"] != LEAVE else None
                case _:
                    pass


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**32),
    st.lists(
        st.tuples(
            st.sampled_from(["enter", "enter", "update", "leave", "drop", "come", "come", "close", "core", "edge", "short", "long"]),
            st.integers(0, 2),
        ),
        max_size=30,
    ),
)
def test_everybody_agrees_on_who_is_present_whatever_died_meanwhile(seed: int, steps: list[tuple[str, int]]) -> None:
    world = World(edges=2, cores=2, seed=seed)
    followers = [Follower(world, 1), Follower(world, 1)]
    guests = [Guest(world, number, number % 2) for number in range(3)]
    for what, number in steps:
        guest = guests[number]
        alive = [n for n, core in enumerate(world.cores) if core.alive]
        match what:
            case "enter" | "update" | "leave" if not guest.ended:
                guest.does({"enter": ENTER, "update": UPDATE, "leave": LEAVE}[what])
            case "drop" if not guest.ended:
                guest.drops()
            case "come" if not guest.ended:
                guest.drops()
                guest.comes(number % 2)
            case "close":
                guest.closes()
            case "core" if len(alive) == 2:
                world.kill_core(number % 2)
            case "core":
                world.start_core(1 - alive[0])
            case "edge":
                world.kill_edge(0)
            case "short":
                world.wait(3)
            case "long":
                world.wait(13)
            case _:
                pass
        world.run(steps=world.random.randrange(40))
        for one in guests:
            one.listens()
    for number, core in enumerate(world.cores):
        if not core.alive:
            world.start_core(number)
    for guest in guests:
        if not guest.ended and (guest.socket is None or guest.socket.closed is not None):
            guest.drops()
            guest.comes(1)
    for _ in range(50):
        world.wait(1)
        for guest in guests:
            guest.listens()
            if not guest.ended and guest.socket is not None and guest.socket.closed is not None:
                guest.comes(1)
    expected = {(guest.connection, guest.name) for guest in guests if guest.wanted and not guest.ended}
    for edge in (0, 1):
        status, body = world.rest("GET", "/channels/c/presence", edge=edge)
        assert status == 200
        assert {(item["connectionId"], item["clientId"]) for item in body} == expected
    late = Follower(world, 0)
    world.run()
    for follower in [*followers, late]:
        follower.listens()
        assert set(follower.members) == expected


def test_5_4_members_of_a_killed_edge_leave_within_31_seconds_through_a_core_that_died_too() -> None:
    world = World(edges=2, cores=2)
    watcher = attached(world, "c", edge=1, heartbeats="false")
    member(world, "c", "ann", edge=0)
    hears(watcher, ENTER, "ann")
    world.kill_edge(0)
    world.kill_core(0)
    world.wait(20)
    watcher.gets_nothing()
    world.wait(8)
    hears(watcher, LEAVE, "ann")


def test_members_outlive_all_cores() -> None:
    world = World(edges=2, cores=2)
    watcher = attached(world, "c", edge=1, heartbeats="false")
    client, _ = member(world, "c", "ann", edge=0, heartbeats="false")
    assert {client.next()["action"], client.next()["action"]} == {ACK, PRESENCE}
    hears(watcher, ENTER, "ann")
    for number in (0, 1):
        world.kill_core(number)
    world.wait(3)
    for number in (0, 1):
        world.start_core(number)
    world.wait(60)
    watcher.gets_nothing()
    assert [found["clientId"] for found in presence_of(world, "c")] == ["ann"]
    client.sends(action=DETACH, channel="c")
    client.gets(DETACHED)
    hears(watcher, LEAVE, "ann")

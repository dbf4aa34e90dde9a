"""Presence over two edges and two cores. Source: specification RTP, RSP; Ably protocol docs, 5 and 8.2."""

from __future__ import annotations

import secrets
from collections import defaultdict
from typing import Any

import pytest

from tests.journeys.real import RealWorld
from tests.journeys.test_journeys import ACK, ATTACH, ATTACHED, CLOSE, CLOSED, CONNECTED, DETACH, DETACHED, ERROR, NACK
from tests.journeys.test_resume import key_of
from tests.journeys.world import World

AnyWorld = World | RealWorld
PRESENCE, SYNC, AUTH = 14, 16, 17
PRESENT, ENTER, LEAVE, UPDATE = 1, 2, 3, 4
HAS_PRESENCE = 1


@pytest.fixture
def channel() -> str:
    return f"room:{secrets.token_hex(4)}"


class Guest:
    """A client on one channel. `members` is what it knows of the set, by the rules of the specification (RTP2, RTP18, RTP19)."""

    def __init__(self, world: AnyWorld, channel: str, **params: Any) -> None:
        self.client = world.client(**params)
        self.channel = channel
        self.connected = self.client.gets(CONNECTED)
        self.id: str = self.connected["connectionId"]
        self.serial = 0
        self.members: dict[tuple[str, str], dict[str, Any]] = {}
        self.told: list[tuple[int, str, str]] = []
        """(action, connection, clientId) of every event."""
        self._residual: set[tuple[str, str]] | None = None
        self._answers: dict[int, dict[str, Any]] = {}

    def attach(self, **fields: Any) -> dict[str, Any]:
        self.client.sends(action=ATTACH, channel=self.channel, **fields)
        frame = self.client.gets(ATTACHED, channel=self.channel)
        if frame["flags"] & HAS_PRESENCE:
            self._residual = set(self.members)
            while self._residual is not None:
                self._take()
        else:
            self.members.clear()
        return frame

    def change(self, action: int, *names: str | None, data: str | None = None) -> dict[str, Any]:
        """The ACK or NACK. `None`: the connection's own clientId."""
        items = []
        for name in names or (None,):
            item: dict[str, Any] = {"action": action, "data": data, "clientId": name}
            items.append({key: value for key, value in item.items() if value is not None})
        serial, self.serial = self.serial, self.serial + 1
        self.client.sends(action=PRESENCE, channel=self.channel, msgSerial=serial, presence=items)
        while serial not in self._answers:
            self._take()
        return self._answers.pop(serial)

    def until(self, *names: str) -> None:
        """Until exactly these are present, as far as it knows."""
        while sorted(name for _, name in self.members) != sorted(names):
            self._take()

    def until_told(self, action: int, connection: str, name: str) -> dict[str, Any]:
        while (action, connection, name) not in self.told:
            self._take()
        self.told.clear()
        return self.frame

    def _take(self) -> None:
        frame = self.client.takes()
        self.frame = frame
        if frame["action"] in (ACK, NACK):
            for index in range(frame["count"]):
                self._answers[frame["msgSerial"] + index] = frame
            return
        assert frame["action"] in (PRESENCE, SYNC), frame
        assert frame["channel"] == self.channel
        for index, item in enumerate(frame["presence"]):
            connection = item.get("connectionId") or frame["connectionId"]
            member = (connection, item["clientId"])
            entry = {
                "id": item.get("id") or f"{frame['id']}:{index}",
                "timestamp": item.get("timestamp") or frame["timestamp"],
                "data": item.get("data"),
            }
            known = self.members.get(member)
            if known is not None and not _newer(entry, known, connection):
                continue
            if self._residual is not None:
                self._residual.discard(member)
            if item["action"] == LEAVE:
                self.members.pop(member, None)
            else:
                self.members[member] = entry
            if frame["action"] == PRESENCE:
                self.told.append((item["action"], *member))
        if frame["action"] == SYNC and frame["channelSerial"].endswith(":"):
            for member in self._residual or ():
                self.members.pop(member, None)
            self._residual = None


def _newer(entry: dict[str, Any], known: dict[str, Any], connection: str) -> bool:
    if entry["id"].startswith(connection) and known["id"].startswith(connection):
        new, old = ([int(part) for part in each["id"].split(":")[1:]] for each in (entry, known))
        return bool(new >= old)
    return bool(entry["timestamp"] >= known["timestamp"])


def two(world: AnyWorld, channel: str, **params: Any) -> tuple[Guest, Guest]:
    """A guest on one edge, and one who watches from the other."""
    guest, watcher = Guest(world, channel, edge=0, **params), Guest(world, channel, edge=1)
    guest.attach()
    watcher.attach()
    return guest, watcher


def test_rtp_enter_update_and_leave_are_seen_through_the_other_edge(world: AnyWorld, channel: str) -> None:
    guest, watcher = two(world, channel, echo="false")
    assert guest.change(ENTER, "ann", data="in")["action"] == ACK
    watcher.until_told(ENTER, guest.id, "ann")
    assert watcher.frame["id"] == f"{guest.id}:0"
    assert watcher.frame["channelSerial"]
    assert guest.told == [(ENTER, guest.id, "ann")], "its own events come whatever its echo says, and before their ACK"
    guest.change(UPDATE, "ann", data="still")
    assert guest.told[1:] == [(UPDATE, guest.id, "ann")]
    watcher.until_told(UPDATE, guest.id, "ann")
    assert watcher.members[guest.id, "ann"]["data"] == "still"
    guest.change(LEAVE, "nobody")
    guest.change(LEAVE, "ann")
    frame = watcher.until_told(LEAVE, guest.id, "ann")
    assert frame["presence"][0]["data"] == "still"  # RTP8e
    watcher.client.gets_nothing()
    late = Guest(world, channel, edge=1)
    assert not late.attach()["flags"] & HAS_PRESENCE


def test_15_26_250_members_are_acked_once_each_and_synced_to_another(world: AnyWorld, channel: str) -> None:
    guest = Guest(world, channel, edge=0)
    guest.attach()
    names = [f"m{number}" for number in range(200)]
    for name in names[:50]:
        assert guest.change(ENTER, name)["action"] == ACK
    assert guest.change(ENTER, *names[50:])["action"] == ACK
    refused = guest.change(ENTER, *[f"x{number}" for number in range(50)])  # one too many: none of them
    assert (refused["action"], refused["error"]["code"]) == (NACK, 91003)
    for binary in (False, True):
        late = Guest(world, channel, edge=1, binary=binary)
        assert late.attach()["flags"] & HAS_PRESENCE
        assert sorted(name for _, name in late.members) == sorted(names)


def test_rtp2_the_same_client_id_over_two_connections_is_two_members(world: AnyWorld, channel: str) -> None:
    first, second = two(world, channel, access_token=world.token(client_id="ann"))
    first.change(ENTER)
    second.change(ENTER, "ann")
    second.until("ann", "ann")
    first.change(LEAVE)
    second.until("ann")
    assert list(second.members) == [(second.id, "ann")]


def test_detach_and_close_make_members_leave_at_once(world: AnyWorld, channel: str) -> None:
    guest, watcher = two(world, channel)
    guest.change(ENTER, "ann", "bob")
    watcher.until("ann", "bob")
    guest.client.sends(action=DETACH, channel=channel)
    while (frame := guest.client.takes())["action"] != DETACHED:
        assert frame["action"] == PRESENCE
    watcher.until()
    assert not watcher.frame["id"].startswith(guest.id)
    other = Guest(world, channel, edge=0)
    other.attach()
    other.change(ENTER, "cid")
    watcher.until("cid")
    other.client.sends(action=CLOSE)
    while other.client.takes()["action"] != CLOSED:
        pass
    watcher.until()


def test_a_resume_keeps_the_members_and_gives_a_sync(world: AnyWorld, channel: str) -> None:
    guest, watcher = two(world, channel)
    guest.change(ENTER, "ann")
    watcher.until("ann")
    guest.client.drops()
    again = Guest(world, channel, edge=1, resume=key_of(guest.connected))
    assert again.id == guest.id
    assert again.attach()["flags"] & HAS_PRESENCE
    assert list(again.members) == [(guest.id, "ann")]
    world.wait(20.0 if not world.real else 0.5)
    watcher.told.clear()
    watcher.client.gets_nothing()
    again.serial = 1
    again.change(LEAVE, "ann")
    watcher.until()


def test_capabilities_and_modes(world: AnyWorld, channel: str) -> None:
    """Who may not enter is told so; who enters and may not read is told of itself."""
    silent = Guest(world, channel, access_token=world.token(capability={channel: ["presence"]}, client_id="ann"))
    silent.attach()
    assert silent.change(ENTER)["action"] == ACK
    silent.until("ann")
    reader = Guest(world, channel, access_token=world.token(capability={channel: ["subscribe"]}, client_id="bob"))
    assert reader.change(ENTER)["error"]["code"] == 40160
    reader.attach()
    assert list(reader.members) == [(silent.id, "ann")]
    assert reader.change(ENTER)["error"]["code"] == 40160
    early = Guest(world, channel)
    assert early.change(ENTER, "cid")["error"]["code"] == 91001
    early.attach(flags=1 << 18 | 1 << 19)
    assert early.change(ENTER, "cid")["error"]["code"] == 40165


def test_a_lost_capability_makes_members_leave(world: AnyWorld, channel: str) -> None:
    guest = Guest(world, channel, edge=0, access_token=world.token(client_id="ann"))
    watcher = Guest(world, channel, edge=1)
    guest.attach()
    watcher.attach()
    guest.change(ENTER)
    watcher.until("ann")
    guest.until("ann")
    guest.client.sends(action=AUTH, auth={"accessToken": world.token(client_id="ann", capability={"elsewhere": ["*"]})})
    guest.client.gets(CONNECTED)
    assert guest.client.gets(ERROR, channel=channel)["error"]["code"] == 40160
    watcher.until()


def test_presence_over_rest(world: AnyWorld, channel: str) -> None:
    guest, watcher = two(world, channel)
    guest.change(ENTER, *[f"m{number}" for number in range(7)], data="x")
    guest.change(UPDATE, "m0", data="y")
    watcher.change(ENTER, "w")
    guest.change(LEAVE, "m6")
    found: list[dict[str, Any]] = []
    path: str | None = f"/channels/{channel}/presence?limit=3"
    pages = 0
    while path is not None:
        status, body, links = world.asks("GET", path, edge=pages % 2)
        assert status == 200
        assert len(body) <= 3
        found += body
        pages += 1
        path = f"/channels/{channel}/" + links["next"].removeprefix("./") if "next" in links else None
    assert pages == 3
    assert sorted((item["clientId"], item["action"], item.get("data")) for item in found) == sorted(
        [("m0", PRESENT, "y"), ("w", PRESENT, None), *((f"m{number}", PRESENT, "x") for number in range(1, 6))]
    )
    status, body, _ = world.asks("GET", f"/channels/{channel}/presence?connectionId={watcher.id}")
    assert [item["clientId"] for item in body] == ["w"]
    status, body, _ = world.asks("GET", f"/channels/{channel}/presence?clientId=m3")
    assert [(item["clientId"], item["connectionId"]) for item in body] == [("m3", guest.id)]
    status, body, links = world.asks("GET", f"/channels/{channel}/presence/history?direction=forwards&limit=9")
    assert [(item["action"], item["clientId"]) for item in body] == [
        *((ENTER, f"m{number}") for number in range(7)),
        (UPDATE, "m0"),
        (ENTER, "w"),
    ]
    status, body, _ = world.asks("GET", f"/channels/{channel}/presence/" + links["next"].removeprefix("./"))
    assert [(item["action"], item["clientId"]) for item in body] == [(LEAVE, "m6")]
    by_id = defaultdict(set)
    for item in found:
        by_id[item["connectionId"]].add(item["id"])
    assert f"{guest.id}:1:0" in by_id[guest.id]


# --- what takes time, or somebody's life: in the fake world ----------------------------------------------------------------------------


@pytest.fixture
def small() -> World:
    return World(edges=2, cores=2)


@pytest.mark.parametrize(("asked", "stays_s"), [(None, 15.0), ("5000", 5.0)])
def test_an_abrupt_drop_leaves_after_its_grace(small: World, asked: str | None, stays_s: float) -> None:
    guest, watcher = two(small, "c", **({"remainPresentFor": asked} if asked else {}))
    guest.change(ENTER, "ann", data="x")
    watcher.until("ann")
    guest.client.drops()
    second = Guest(small, "c", edge=0)
    second.attach()
    second.change(ENTER, "ann")
    watcher.until("ann", "ann")  # the old one is in its grace
    small.wait(stays_s - 1)
    watcher.client.gets_nothing()
    small.wait(3)
    watcher.until("ann")
    assert list(watcher.members) == [(second.id, "ann")]
    assert not watcher.frame["id"].startswith(guest.id)
    assert watcher.frame["connectionId"] == guest.id
    assert watcher.frame["presence"][0]["data"] == "x"


def test_a_core_that_dies_takes_no_member_with_it(small: World) -> None:
    guest, watcher = two(small, "c")
    guest.change(ENTER, "ann")
    watcher.until("ann")
    for number in (0, 1):
        small.kill_core(number)
        small.wait(2)
        guest.change(ENTER, f"after {number}")
        small.start_core(number)
        small.wait(30)
    watcher.until("ann", "after 0", "after 1")
    late = Guest(small, "c", edge=1)
    late.attach()
    assert len(late.members) == 3


def test_members_at_an_edge_that_dies_leave_after_lease_and_grace(small: World) -> None:
    guest, watcher = two(small, "c")
    guest.change(ENTER, *[f"m{number}" for number in range(150)])
    watcher.until(*[f"m{number}" for number in range(150)])
    small.kill_edge(0)
    small.wait(20)
    watcher.client.gets_nothing()
    small.wait(15)
    watcher.until()


def test_a_set_of_a_thousand_is_synced_in_pages(small: World) -> None:
    for core in small.cores:  # a limit of the core's own would end it at 200
        core.node._registry.app("shop").presence_members = 2_000  # type: ignore[union-attr]
    guest = Guest(small, "c", edge=0)
    guest.attach()
    names = [f"m{number:04d}" for number in range(1_000)]
    for start in range(0, 1_000, 250):
        guest.change(ENTER, *names[start : start + 250], data="d" * 60)
    late = Guest(small, "c", edge=1)
    late.attach()
    assert sorted(name for _, name in late.members) == names


@pytest.mark.parametrize("seed", range(15))
def test_whatever_dies_everybody_agrees_in_the_end(seed: int) -> None:
    world = World(edges=2, cores=2, seed=seed)
    chance = world.random
    watcher = Guest(world, "c", edge=1)
    watcher.attach()
    guests = []
    for number in range(4):
        guest = Guest(world, "c", edge=0)
        guest.attach()
        guests.append(guest)
        guest.change(ENTER, f"g{number}")
    expected = {f"g{number}" for number in range(4)}
    for _ in range(6):
        number = chance.randrange(4)
        match chance.randrange(5):
            case 0:
                guests[number].change(UPDATE, f"g{number}", data=str(chance.random()))
                expected.add(f"g{number}")
            case 1:
                guests[number].change(LEAVE, f"g{number}")
                expected.discard(f"g{number}")
            case 2:
                dead = chance.randrange(2)
                world.kill_core(dead)
                world.wait(chance.choice([0.5, 3]))
                world.start_core(dead)
            case 3:
                guests[number].client.drops()
                again = Guest(world, "c", edge=chance.randrange(2), resume=key_of(guests[number].connected))
                assert again.id == guests[number].id
                again.serial = guests[number].serial
                again.attach()
                guests[number] = again
            case 4:
                world.wait(chance.choice([1, 8]))
    world.wait(40)
    late = Guest(world, "c", edge=chance.randrange(2))
    late.attach()
    assert {name for _, name in late.members} == expected
    watcher.until(*expected)
    for guest in guests:
        guest.until(*expected)

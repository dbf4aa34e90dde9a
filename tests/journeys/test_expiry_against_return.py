"""A member whose connection has dropped comes back in the very moment in which it would leave: five hundred times, each by another chance.

The grace is 15 s, so the return is dialled 14.9 s after the drop, and the clock passes the end of the grace while it is under way. What may
never be: a client that goes on with its connection and its attachment, and is not a member any more. It does what the specification wants
of it at every attach after a drop (RTP17i, RTP17g1): it enters again under the id of its member, and does not know whether it has to.
"""

from __future__ import annotations

import random
from typing import Any

import pytest

from tests.journeys.test_journeys import ACK, ATTACH, ATTACHED, CONNECTED, DISCONNECTED, PRESENCE
from tests.journeys.test_resume import key_of
from tests.journeys.world import KEY, Client, World

SYNC = 16
RESUMED = 4
ENTER, LEAVE = 2, 3
GRACE_S = 15.0
CHANNEL = "room"


class View:
    """Who is present, as a client's SDK has it from the frames that came."""

    def __init__(self) -> None:
        self.members: dict[tuple[str, str], int] = {}

    def takes(self, frame: dict[str, Any]) -> None:
        for item in frame.get("presence", []):
            member = (item.get("connectionId", frame.get("connectionId", "")), item["clientId"])
            if item["action"] == LEAVE:
                self.members.pop(member, None)
            else:
                self.members[member] = item["action"]


def drain(client: Client) -> list[dict[str, Any]]:
    frames = []
    while client.has_more():
        frames.append(client.next())
    return frames


class Returning:
    """The member, as its SDK would have it, from its return on."""

    def __init__(self, world: World, edge: int, connected: dict[str, Any], position: str) -> None:
        self.world, self.identity, self.position = world, connected["connectionId"], position
        self.key = key_of(connected)
        self.member_id = f"{self.identity}:0:0"
        self.serial, self.acked = 1, 0
        self.attached = False
        self.dials(edge)

    def dials(self, edge: int) -> None:
        params = {"v": "6", "key": KEY, "clientId": "mary", "resume": self.key}
        self.socket = Client(self.world, self.world.edges[edge], False, params, run=False)

    def hears(self) -> None:
        for frame in drain(self.socket):
            match frame["action"]:
                case action if action == CONNECTED:
                    assert frame["connectionId"] == self.identity, "it is resumed"
                    self.key = key_of(frame)
                    self.socket.posts(action=ATTACH, channel=CHANNEL, channelSerial=self.position)
                case action if action == ATTACHED:
                    self.attached = True
                    assert frame["flags"] & RESUMED
                    item = {"action": ENTER, "id": self.member_id, "data": "here"}
                    self.socket.posts(action=PRESENCE, channel=CHANNEL, msgSerial=self.serial, presence=[item])
                    self.serial += 1
                case action if action == PRESENCE:
                    self.position = frame["channelSerial"]
                case action if action == ACK:
                    self.acked += frame["count"]
                case action:
                    assert action in (SYNC, DISCONNECTED), frame
        if self.socket.closed is not None:
            self.attached = False
            self.dials(0)


@pytest.mark.parametrize("first", range(0, 500, 100))
def test_a_return_at_the_end_of_the_grace_never_ends_as_a_live_connection_without_its_member(first: int) -> None:
    kept = sum(one_return(seed) for seed in range(first, first + 100))
    assert 5 < kept < 95, "both outcomes are there"


def one_return(seed: int) -> bool:
    """Whether the member was kept throughout."""
    chance = random.Random(seed)
    world = World(edges=2, cores=2, seed=seed)
    watcher = world.client(edge=1, clientId="watcher")
    watcher.gets(CONNECTED)
    watcher.sends(action=ATTACH, channel=CHANNEL)
    view = View()

    member = world.client(edge=0, clientId="mary")
    connected = member.gets(CONNECTED)
    member.sends(action=ATTACH, channel=CHANNEL)
    position = member.gets(ATTACHED)["channelSerial"]
    member.sends(action=PRESENCE, channel=CHANNEL, msgSerial=0, presence=[{"action": ENTER, "data": "here"}])
    world.wait(chance.uniform(0.0, 3.0))
    frames = drain(member)
    assert ACK in {frame["action"] for frame in frames}
    position = max([position, *(frame["channelSerial"] for frame in frames if frame["action"] == PRESENCE)])

    member.leaves()
    world.run(steps=chance.randrange(40))
    world.wait(GRACE_S - 0.1)
    again = Returning(world, chance.randrange(2), connected, position)
    under_way_s = chance.uniform(0.0, 2.5)
    killed = chance.random() < 0.2
    while under_way_s > 0:
        world.run(steps=chance.randrange(9))
        passes = min(under_way_s, chance.choice([0.01, 0.1, 0.2, 1.1]))
        world.pass_time(passes)
        under_way_s -= passes
        if killed and chance.random() < 0.3:
            killed = False
            world.kill_core(chance.randrange(2), run=False)
            world.start_core([core.alive for core in world.cores].index(False), run=False)
        again.hears()
    for _ in range(10):
        world.run()
        again.hears()
        world.wait(4)
    again.hears()
    frames = drain(watcher)
    for frame in frames:
        view.takes(frame)
    what = f"seed {seed}"
    assert again.attached, what
    assert again.acked == again.serial - 1, what
    assert (again.identity, "mary") in view.members, f"{what}: a live connection without its member, as the watcher sees it"
    for edge in (0, 1):
        status, found = world.rest("GET", f"/channels/{CHANNEL}/presence", edge=edge)
        assert status == 200, what
        assert [(item["connectionId"], item["clientId"]) for item in found] == [(again.identity, "mary")], what
    return not any(item["action"] == LEAVE for frame in frames for item in frame.get("presence", []))

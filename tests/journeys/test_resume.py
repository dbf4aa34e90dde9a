"""A client drops, and goes on elsewhere. Source: specification RTN15, RTN16, RTN19, RTL4c1; Ably protocol docs, 3.5 and 6."""

from __future__ import annotations

import json
import secrets
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.link.frames import Lane
from relay.model.channel import log_key, partition_of
from relay.model.message import Kind
from relay.model.serials import Serial
from tests.journeys.real import RealWorld
from tests.journeys.test_journeys import ACK, ATTACH, ATTACHED, CLOSE, CLOSED, CONNECTED, DISCONNECTED, ERROR, MESSAGE, attached
from tests.journeys.world import APP, STREAM, Client, World

AnyWorld = World | RealWorld
RESUMED, HAS_BACKLOG, ATTACH_RESUME = 4, 2, 32


@pytest.fixture
def channel() -> str:
    return f"resume:{secrets.token_hex(4)}"


def key_of(connected: dict[str, Any]) -> str:
    return str(connected["connectionDetails"]["connectionKey"])


def publishes(client: Any, channel: str, *serials: int) -> list[str]:
    """Each is acknowledged before the next; the message serials."""
    given = []
    for serial in serials:
        client.sends(action=MESSAGE, channel=channel, msgSerial=serial, messages=[{"data": f"{serial}"}])
        given += client.gets(ACK, msgSerial=serial, count=1)["res"][0]["serials"]
    return given


@pytest.mark.parametrize("how", ["resume", "recover"])
def test_rtn15_dropped_on_one_edge_resumed_on_the_other_with_everything_missed(world: AnyWorld, channel: str, how: str) -> None:
    publisher = world.client(edge=0)
    publisher.gets(CONNECTED)
    client = world.client(edge=0)
    first = client.gets(CONNECTED)
    client.sends(action=ATTACH, channel=channel)
    assert not client.gets(ATTACHED)["flags"] & RESUMED
    publishes(publisher, channel, 0)
    position = client.gets(MESSAGE)["channelSerial"]
    client.drops()
    publishes(publisher, channel, 1, 2, 3)
    again = world.client(edge=1, **{how: key_of(first)})
    second = again.gets(CONNECTED)
    assert second["connectionId"] == first["connectionId"]
    assert key_of(second) != key_of(first)
    assert "error" not in second
    again.sends(action=ATTACH, channel=channel, channelSerial=position)
    frame = again.gets(ATTACHED, channel=channel)
    assert frame["flags"] & (RESUMED | HAS_BACKLOG) == RESUMED | HAS_BACKLOG
    assert "error" not in frame
    missed = [again.gets(MESSAGE) for _ in range(3)]
    assert [message["data"] for frame in missed for message in frame["messages"]] == ["1", "2", "3"]
    serials = [position, *(frame["channelSerial"] for frame in missed)]
    assert serials == sorted(set(serials))
    publishes(publisher, channel, 4)
    assert again.gets(MESSAGE)["messages"][0]["data"] == "4"
    again.gets_nothing()


def test_rtl4j_a_rewind_happens_on_the_first_attach_and_on_no_resumed_one(world: AnyWorld, channel: str) -> None:
    """Whether the client resumes with a position or has none yet: `{rewind: 1}`, a number, as applications write it."""
    publisher = world_publisher(world)
    publishes(publisher, channel, 0, 1)
    client = world.client()
    first = client.gets(CONNECTED)
    client.sends(action=ATTACH, channel=channel, params={"rewind": 1})
    assert client.gets(ATTACHED, params={"rewind": "1"})["flags"] & (RESUMED | HAS_BACKLOG) == HAS_BACKLOG
    frame = client.gets(MESSAGE)
    assert frame["messages"][0]["data"] == "1"
    client.drops()
    publishes(publisher, channel, 2, 3)
    again = world.client(edge=1, resume=key_of(first))
    again.gets(CONNECTED, connectionId=first["connectionId"])
    again.sends(action=ATTACH, channel=channel, channelSerial=frame["channelSerial"], params={"rewind": 1}, flags=ATTACH_RESUME)
    assert again.gets(ATTACHED)["flags"] & (RESUMED | HAS_BACKLOG) == RESUMED | HAS_BACKLOG
    assert [again.gets(MESSAGE)["messages"][0]["data"] for _ in range(2)] == ["2", "3"]
    other = world.client()
    other.gets(CONNECTED)
    other.sends(action=ATTACH, channel=channel, params={"rewind": 1}, flags=ATTACH_RESUME)
    assert not other.gets(ATTACHED)["flags"] & (RESUMED | HAS_BACKLOG)
    publishes(publisher, channel, 4)
    for reader in (again, other):
        assert reader.gets(MESSAGE)["messages"][0]["data"] == "4"
        reader.gets_nothing()


def test_rtn19a2_publishes_sent_again_after_a_resume_are_acknowledged_with_their_first_serials(world: AnyWorld, channel: str) -> None:
    reader = attached(world, channel, edge=1)
    client = world.client(edge=0)
    first = client.gets(CONNECTED)
    serials = publishes(client, channel, 0, 1)
    client.drops()
    again = world.client(edge=1, resume=key_of(first))
    again.gets(CONNECTED, connectionId=first["connectionId"])
    assert publishes(again, channel, 0, 1) == serials
    publishes(again, channel, 2, 7)  # after a recover numbers may be left out
    assert [reader.gets(MESSAGE)["messages"][0]["data"] for _ in range(4)] == ["0", "1", "2", "7"]
    reader.gets_nothing()


def test_6_2_a_transport_that_is_still_open_is_closed_with_80003(world: AnyWorld, channel: str) -> None:
    for edge in (0, 1):
        client = attached(world, channel, edge=0)
        first = world.client(edge=0)
        connected = first.gets(CONNECTED)
        again = world.client(edge=edge, resume=key_of(connected))
        again.gets(CONNECTED, connectionId=connected["connectionId"])
        assert first.gets(DISCONNECTED)["error"]["code"] == 80003
        assert first.closed == 1000
        publishes(again, channel, 0)
        assert client.gets(MESSAGE)["connectionId"] == connected["connectionId"]


def test_15_29_attachments_are_not_resurrected(world: AnyWorld, channel: str) -> None:
    client = world.client()
    first = client.gets(CONNECTED)
    client.sends(action=ATTACH, channel=channel)
    client.gets(ATTACHED)
    client.drops()
    again = world.client(resume=key_of(first))
    again.gets(CONNECTED)
    publishes(world_publisher(world), channel, 0)
    again.gets_nothing()


def world_publisher(world: AnyWorld) -> Any:
    publisher = world.client()
    publisher.gets(CONNECTED)
    return publisher


def test_rtn15c7_closed_and_forged_keys(world: AnyWorld) -> None:
    client = world.client()
    first = client.gets(CONNECTED)
    client.sends(action=CLOSE)
    client.gets(CLOSED)
    world.wait(0.5)
    frame = world.client(edge=1, resume=key_of(first)).gets(CONNECTED)
    assert frame["connectionId"] != first["connectionId"]
    assert (frame["error"]["code"], frame["error"]["statusCode"]) == (80008, 400)
    key = key_of(first)
    forged = key[:-1] + ("A" if key[-1] != "A" else "Q")
    assert world.client(resume=forged).gets(CONNECTED)["error"]["code"] == 80018


def test_6_2_another_client_id_is_fatal(world: AnyWorld) -> None:
    client = world.client(access_token=world.token(client_id="bob"))
    first = client.gets(CONNECTED)
    client.drops()
    thief = world.client(access_token=world.token(client_id="eve"), resume=key_of(first))
    assert thief.gets(ERROR)["error"]["code"] == 40102
    again = world.client(access_token=world.token(client_id="bob"), resume=key_of(first))
    again.gets(CONNECTED, connectionId=first["connectionId"])


def test_3_5_positions_of_another_stream_or_beyond_the_end_are_90005(world: AnyWorld, channel: str) -> None:
    publishes(world_publisher(world), channel, 0)
    client = attached(world, channel)
    first = attached(world, channel)
    publishes(world_publisher(world), channel, 0)
    position = first.gets(MESSAGE)["channelSerial"]
    client.gets(MESSAGE)
    stream, partition, _ = position.split("-")
    other = "0000" if partition != "0000" else "0001"
    foreign = [
        "zzzzzzzz" + position[8:],
        position.replace(f"-{partition}-", f"-{other}-"),
        f"{stream}-{partition}-{10**15:016d}",
        "garbage",
    ]
    for serial in foreign:
        client = world.client(edge=1)
        client.gets(CONNECTED)
        client.sends(action=ATTACH, channel=channel, channelSerial=serial)
        frame = client.gets(ATTACHED)
        assert not frame["flags"] & RESUMED
        assert frame["error"]["code"] == 90005
        client.gets_nothing()


def test_15_56_a_rest_publish_on_behalf_of_a_connection_of_the_other_edge(world: AnyWorld, channel: str) -> None:
    reader = attached(world, channel)
    client = world.client(edge=1)
    connected = client.gets(CONNECTED)
    path = f"/channels/{channel.replace(':', '%3A')}/messages"
    status, _ = world.rest("POST", path, {"data": "x", "connectionKey": key_of(connected)})
    assert status == 201
    assert reader.gets(MESSAGE)["messages"][0].get("connectionId", connected["connectionId"]) == connected["connectionId"]
    client.sends(action=CLOSE)
    client.gets(CLOSED)
    world.wait(0.5)
    status, body = world.rest("POST", path, {"data": "x", "connectionKey": key_of(connected)})
    assert (status, body["error"]["code"]) == (400, 40006)


# --- only where the clock can be turned, and processes killed at any step


def test_6_4_messages_older_than_what_is_kept_are_90003_and_the_connection_80008() -> None:
    world = World(edges=2, cores=2)
    client = attached(world, "c")
    publisher = world_publisher(world)
    first = world.client()
    connected = first.gets(CONNECTED)
    publishes(publisher, "c", 0)
    position = client.gets(MESSAGE)["channelSerial"]
    publishes(publisher, "c", 1)
    first.drops()
    world.wait(400)
    publishes(publisher, "c", 2)
    again = world.client(edge=1, resume=key_of(connected))
    assert again.gets(CONNECTED)["error"]["code"] == 80008
    again.sends(action=ATTACH, channel="c", channelSerial=position)
    frame = again.gets(ATTACHED)
    assert not frame["flags"] & RESUMED
    assert frame["error"]["code"] == 90003
    assert again.gets(MESSAGE)["messages"][0]["data"] == "2"


def test_3_5_a_log_that_begins_with_the_opening_of_channels_has_no_messages_before_its_first() -> None:
    """A core that reads the log from its beginning knows that, and that a channel's first message is its first."""
    quiet, busy = "c:1", "c:3"
    world = World(edges=1, cores=1)
    for name in (quiet, busy):  # which stay open
        attached(world, name)
    publisher = world_publisher(world)
    publishes(publisher, busy, 0)
    place = partition_of(log_key(APP, quiet), STREAM.partitions)
    assert [record.kind for record in world.log.partitions[place]] == [Kind.LIFECYCLE, Kind.LIFECYCLE, Kind.MESSAGE]
    world.wait(400)
    publishes(publisher, quiet, 1)
    world.kill_core(0)
    world.start_core(0)
    again = world.client()
    again.gets(CONNECTED)
    again.sends(action=ATTACH, channel=quiet, channelSerial=Serial(STREAM.id, place, -1).text)
    frame = again.gets(ATTACHED)
    assert (frame["flags"] & RESUMED, frame.get("error")) == (RESUMED, None)
    assert again.gets(MESSAGE)["messages"][0]["data"] == "1"


@pytest.mark.parametrize("restart", [False, True])
def test_3_5_a_client_of_a_channel_on_which_nothing_has_happened_misses_nothing_however_long_it_was_away(restart: bool) -> None:
    """The channel's last record is older than all that cores keep, and nobody else has the channel open."""
    world = World(edges=2, cores=2)
    publisher = world_publisher(world)
    client = attached(world, "quiet")
    publishes(publisher, "quiet", 0)
    first = position = client.gets(MESSAGE)["channelSerial"]
    client.drops()
    for number in range(1, 200):  # on every partition, so that what is kept goes on
        publishes(publisher, f"busy-{number % 16}", number)
        world.wait(5)
    if restart:
        for core in (0, 1):
            world.kill_core(core)
            world.start_core(core)
            world.wait(5)
    for edge in (0, 1):
        again = world.client(edge=edge)
        again.gets(CONNECTED)
        again.sends(action=ATTACH, channel="quiet", channelSerial=position)
        frame = again.gets(ATTACHED)
        assert (frame["flags"] & (RESUMED | HAS_BACKLOG), frame.get("error")) == (RESUMED, None)
        publishes(publisher, "quiet", 200 + edge)
        frame = again.gets(MESSAGE)
        assert frame["messages"][0]["data"] == str(200 + edge)
        again.gets_nothing()
        position = frame["channelSerial"]
        again.drops()
        world.wait(600)
    late = world.client()
    late.gets(CONNECTED)
    late.sends(action=ATTACH, channel="quiet", channelSerial=first)
    assert late.gets(ATTACHED)["error"]["code"] == 90003


@pytest.mark.parametrize("cores", [1, 2])
def test_an_edge_that_is_killed_leaves_its_connections_to_be_resumed_for_two_minutes(cores: int) -> None:
    world = World(edges=2, cores=cores)
    keys = []
    for _ in range(2):
        client = world.client(edge=0)
        frame = client.gets(CONNECTED)
        keys.append((frame["connectionId"], key_of(frame)))
    world.kill_edge(0)
    world.wait(100)
    world.client(edge=1, resume=keys[0][1]).gets(CONNECTED, connectionId=keys[0][0])
    world.wait(40)
    assert world.client(edge=1, resume=keys[1][1]).gets(CONNECTED)["error"]["code"] == 80008
    world.wait(700)
    (alive,) = {core.node.status()["connections"] for core in world.cores}
    assert alive == 2, "what is long gone is forgotten, what lives is not"
    assert {core.node.status()["edges"] for core in world.cores} == {2}


def test_a_drop_that_the_core_dies_of_hearing_is_told_to_another() -> None:
    world = World(edges=2, cores=2)
    client = world.client(edge=0)
    key = key_of(client.gets(CONNECTED))
    client.leaves()
    world.run(steps=1)
    (told,) = [wire.core for wire in world.wires.values() if wire.up[Lane.LIVE]]
    world.kill_core(world.cores.index(told))
    world.wait(3)
    assert any(name.startswith("connection:") and b"goneAt" in (value or b"") for name, value in world.log.sessions)
    world.wait(130)
    assert world.client(edge=1, resume=key).gets(CONNECTED)["error"]["code"] == 80008


class Roamer:
    """What an SDK does: numbers its publishes, sends again what was not acknowledged, resumes, and attaches with its last channelSerial."""

    def __init__(self, world: World, edge: int, *, reads: bool) -> None:
        self.world, self.reads = world, reads
        self.key = self.identity = ""
        self.position: str | None = None
        self.serial = 0
        self.unanswered: dict[int, str] = {}
        self.got: list[str] = []
        self.socket: Client
        self.comes(edge)

    def comes(self, edge: int) -> None:
        more = {"resume": self.key} if self.key else {}
        self.socket = Client(
            self.world, self.world.edges[edge], False, {"v": "6", "key": "shop.key:" + "0123456789abcdef" * 2, "echo": "false", **more}
        )
        self.connected = False

    def drops(self) -> None:
        self.listens()
        self.socket.leaves()

    def listens(self) -> None:
        while self.socket.has_more():
            frame = self.socket.next()
            match frame["action"]:
                case 4:
                    assert "error" not in frame, frame
                    assert self.identity in ("", frame["connectionId"])
                    self.identity, self.key, self.connected = frame["connectionId"], key_of(frame), True
                    if self.reads:
                        at = {} if self.position is None else {"channelSerial": self.position}
                        self.socket.posts(action=ATTACH, channel="c", **at)
                    for serial, data in self.unanswered.items():
                        self.socket.posts(action=MESSAGE, channel="c", msgSerial=serial, messages=[{"data": data}])
                case 1:
                    for serial in range(frame["msgSerial"], frame["msgSerial"] + frame["count"]):
                        del self.unanswered[serial]
                case 11:
                    assert self.position is None or frame["flags"] & RESUMED, frame
                    self.position = frame["channelSerial"] if self.position is None else self.position
                case 15:
                    self.position = frame["channelSerial"]
                    self.got += [message["data"] for message in frame["messages"]]
                case action:
                    assert action == DISCONNECTED, frame
                    self.connected = False

    def publishes(self) -> None:
        data = str(self.serial)
        self.unanswered[self.serial] = data
        if self.connected and self.socket.closed is None:
            self.socket.posts(action=MESSAGE, channel="c", msgSerial=self.serial, messages=[{"data": data}])
        self.serial += 1


WHAT = [
    "publish",
    "publish",
    "publish",
    "reader drops",
    "publisher drops",
    "reader moves",
    "publisher moves",
    "kill edge",
    "kill core",
    "start core",
]


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32), st.lists(st.tuples(st.sampled_from(WHAT), st.integers(0, 1), st.integers(0, 40)), max_size=30))
def test_every_acknowledged_publish_reaches_a_subscriber_that_drops_and_resumes_once_and_in_order(
    seed: int, steps: list[tuple[str, int, int]]
) -> None:
    """Publisher and subscriber drop, move between two edges with their old socket still open, and lose edges and cores, at any step."""
    world = World(edges=2, cores=2, seed=seed)
    reader, publisher = Roamer(world, 1, reads=True), Roamer(world, 0, reads=False)
    for roamer in (reader, publisher):
        world.run()
        roamer.listens()
    world.run()
    reader.listens()
    for what, which, some in steps:
        alive = [n for n, core in enumerate(world.cores) if core.alive]
        match what.split():
            case ["publish"]:
                publisher.publishes()
            case ["reader", how] | ["publisher", how]:
                roamer = reader if what.startswith("reader") else publisher
                roamer.listens()
                if how == "drops":
                    roamer.drops()
                roamer.comes(which)
            case ["kill", "edge"]:
                world.kill_edge(which)
                world.run(steps=some)
            case ["kill", "core"] if len(alive) == 2:
                world.kill_core(which)
            case ["start", "core"] if len(alive) == 1:
                world.start_core(1 - alive[0])
            case _:
                pass
        world.run(steps=some)
        for roamer in (reader, publisher):
            roamer.listens()
            if roamer.socket.closed is not None:
                roamer.comes(which)
    for _ in range(6):
        world.wait(5)
        for roamer in (reader, publisher):
            roamer.listens()
            if roamer.socket.closed is not None:
                roamer.comes(0)
                world.run()
                roamer.listens()
    assert publisher.unanswered == {}
    assert reader.got == [str(n) for n in range(publisher.serial)]
    assert json.dumps(world.log.sessions, default=repr).count("connection:") < 6 * (len(steps) + 4) * 2

"""Derived channels end to end: what passes a filter, what a resume brings, and what the right to one is worth. Ably protocol docs, 3.2."""

from __future__ import annotations

import base64
import secrets
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.link import calls
from relay.link.frames import Fetch, Opened, Record
from tests.journeys.forged import Forge, forge_of
from tests.journeys.real import RealWorld
from tests.journeys.test_journeys import ACK, ATTACH, ATTACHED, CONNECTED, ERROR, MESSAGE, NACK, attached
from tests.journeys.world import World

AnyWorld = World | RealWorld
DETACH, DETACHED, PRESENCE = 12, 13, 14
SUBSCRIBE, RESUMED, HAS_BACKLOG = 1 << 18, 4, 2


@pytest.fixture
def channel() -> str:
    return f"own:{secrets.token_hex(4)}"


@pytest.fixture
def forge(world: AnyWorld) -> Iterator[Forge]:
    made = forge_of(world)
    try:
        yield made
    finally:
        made.close()


def derived(expression: str, channel: str, query: str = "") -> str:
    return f"[filter={base64.b64encode(expression.encode()).decode()}{query}]{channel}"


def score(number: int, **more: Any) -> dict[str, Any]:
    return {"name": "score", "data": str(number), "extras": {"headers": {"n": number}}, **more}


def publisher(world: AnyWorld) -> Any:
    client = world.client()
    client.gets(CONNECTED)
    return client


def publishes(client: Any, channel: str, serial: int, *messages: dict[str, Any]) -> None:
    client.sends(action=MESSAGE, channel=channel, msgSerial=serial, messages=list(messages))
    client.gets(ACK, msgSerial=serial)


def data(frame: dict[str, Any]) -> list[str]:
    return [message["data"] for message in frame["messages"]]


@pytest.mark.parametrize("binary", [False, True])
def test_each_derived_channel_gets_what_it_asks_for(world: AnyWorld, channel: str, binary: bool) -> None:
    high, low, no = (derived(f"name == 'score' && headers.n {rest}", channel) for rest in ("> `5`", "<= `5`", "== `77`"))
    reader = attached(world, high, edge=1, binary=binary)
    for other in (low, no, channel):
        reader.sends(action=ATTACH, channel=other)
        assert reader.gets(ATTACHED, channel=other)["flags"] & SUBSCRIBE
    publishes(publisher(world), channel, 0, score(3), score(9), {"name": "other", "data": "x"}, score(8))
    got = {}
    for _ in range(3):
        frame = reader.gets(MESSAGE)
        got[frame["channel"]] = frame
    assert {name: data(frame) for name, frame in got.items()} == {high: ["9", "8"], low: ["3"], channel: ["3", "9", "x", "8"]}
    assert [message["id"] for message in got[high]["messages"]] == [f"{got[channel]['id']}:{index}" for index in (1, 3)]
    assert [message["serial"] for message in got[high]["messages"]] == [got[channel]["messages"][index]["serial"] for index in (1, 3)]
    reader.gets_nothing()


def test_a_resume_on_another_edge_brings_what_passes_and_no_more(world: AnyWorld, channel: str) -> None:
    name = derived("headers.n > `5`", channel)
    writer = publisher(world)
    reader = world.client(edge=0)
    first = reader.gets(CONNECTED)
    reader.sends(action=ATTACH, channel=name)
    position = reader.gets(ATTACHED)["channelSerial"]
    reader.drops()
    for serial, number in enumerate((1, 9, 2, 8, 3)):
        publishes(writer, channel, serial, score(number))
    again = world.client(edge=1, resume=first["connectionDetails"]["connectionKey"])
    again.gets(CONNECTED, connectionId=first["connectionId"])
    again.sends(action=ATTACH, channel=name, channelSerial=position)
    frame = again.gets(ATTACHED, channel=name)
    assert frame["flags"] & (RESUMED | HAS_BACKLOG) == RESUMED | HAS_BACKLOG
    assert "error" not in frame
    assert [data(again.gets(MESSAGE, channel=name)) for _ in range(2)] == [["9"], ["8"]]
    head = again.gets(ATTACHED, channel=name)
    assert head["flags"] & (RESUMED | HAS_BACKLOG) == RESUMED
    publishes(writer, channel, 5, score(7))
    assert data(again.gets(MESSAGE)) == ["7"]
    again.sends(action=DETACH, channel=name)
    again.gets(DETACHED, channel=name)
    again.sends(action=ATTACH, channel=name, channelSerial=head["channelSerial"])
    assert again.gets(ATTACHED)["flags"] & RESUMED
    assert data(again.gets(MESSAGE)) == ["7"]


def test_a_position_that_was_told_is_good_for_a_resume_long_after_what_did_not_pass() -> None:
    """Without it the client would come back with the position that it attached at, from before what did not pass."""
    world = World(edges=2, cores=2)
    name = derived("headers.n > `5`", "own:1")
    writer, reader = publisher(world), world.client(edge=0)
    first = reader.gets(CONNECTED)
    reader.sends(action=ATTACH, channel=name)
    before = reader.gets(ATTACHED)["channelSerial"]
    publishes(writer, "own:1", 0, score(1))
    world.wait(16)
    told = reader.gets(ATTACHED, channel=name)
    assert told["flags"] & RESUMED
    world.wait(400)
    reader.drops()
    publishes(writer, "own:1", 1, score(9))
    again = world.client(edge=1, resume=first["connectionDetails"]["connectionKey"])
    again.gets(CONNECTED, connectionId=first["connectionId"])
    again.sends(action=ATTACH, channel=name, channelSerial=told["channelSerial"])
    frame = again.gets(ATTACHED)
    assert "error" not in frame
    assert frame["flags"] & RESUMED
    assert data(again.gets(MESSAGE)) == ["9"]
    other = attached(world, "[?x=1]own:1")
    other.sends(action=ATTACH, channel=name, channelSerial=before)
    assert other.gets(ATTACHED, channel=name)["error"]["code"] == 90003


STEP = st.one_of(st.lists(st.integers(0, 9), min_size=1, max_size=4), st.sampled_from([3.0, 16.0]), st.just("drop"), st.just("again"))


@settings(max_examples=25, deadline=None)
@given(st.lists(STEP, min_size=1, max_size=14))
def test_however_it_drops_and_resumes_a_client_gets_all_that_passes_once_and_in_order(steps: list[list[int] | float | str]) -> None:
    world = World(edges=2, cores=2)
    name, writer = derived("headers.n > `5`", "own:1"), publisher(world)
    reader, edge, serial = world.client(), 0, 0
    connected = reader.gets(CONNECTED)
    position: str | None = None
    got: list[str] = []
    sent: list[int] = []

    def attaches() -> None:
        nonlocal position
        reader.sends(action=ATTACH, channel=name, **({"channelSerial": position} if position else {}))
        frame = reader.gets(ATTACHED)
        assert bool(frame["flags"] & RESUMED) is (position is not None)
        assert "error" not in frame
        position = frame["channelSerial"]

    def reads() -> None:
        nonlocal position
        while reader.has_more():
            frame = reader.takes()
            assert frame["channelSerial"] >= (position or "")
            position = frame["channelSerial"]
            if frame["action"] == MESSAGE:
                got.extend(data(frame))

    attaches()
    for step in [*steps, "drop"]:
        if isinstance(step, list):
            publishes(writer, "own:1", serial, *(score(number) for number in step))
            serial += 1
            sent += step
        elif isinstance(step, float):
            world.wait(step)
        elif step == "drop":
            reader.drops()
            edge = 1 - edge
            reader = world.client(edge=edge, resume=connected["connectionDetails"]["connectionKey"])
            connected = reader.gets(CONNECTED, connectionId=connected["connectionId"])
            attaches()
        else:
            reads()
            reader.sends(action=DETACH, channel=name)
            reader.gets(DETACHED)
            attaches()
        if not isinstance(step, list):
            reads()
    reads()
    assert got == [str(number) for number in sent if number > 5]


def test_who_may_only_read_through_a_filter_reads_so_and_does_nothing_else(world: AnyWorld, channel: str) -> None:
    credential = world.token(capability={"[filter]own:*": ["*"]}, client_id="bob")
    name = derived("headers.n > `5`", channel, "?rewind=1")
    client = world.client(access_token=credential)
    client.gets(CONNECTED)
    client.sends(action=ATTACH, channel=channel)
    assert client.gets(ERROR, channel=channel)["error"]["code"] == 40160
    client.sends(action=ATTACH, channel=name)
    frame = client.gets(ATTACHED, channel=name)
    assert frame["flags"] & 0x36F0000 == SUBSCRIBE
    assert "params" not in frame
    client.sends(action=MESSAGE, channel=name, msgSerial=0, messages=[score(9)])
    assert client.gets(NACK, msgSerial=0)["error"]["code"] == 40010
    client.sends(action=PRESENCE, channel=name, msgSerial=1, presence=[{"action": 2}])
    assert client.gets(NACK, msgSerial=1)["error"]["code"] == 40010
    for method, path, body in (
        ("POST", "messages", score(9)),
        ("GET", "messages", None),
        ("GET", "presence", None),
        ("GET", "presence/history", None),
        ("GET", "", None),
    ):
        status, answer = world.rest(method, f"/channels/{quote(name, safe='')}/{path}".rstrip("/"), body, credential=credential)
        assert (status, answer["error"]["code"]) == (400, 40010), path
    member = attached(world, channel, edge=1)
    member.sends(action=PRESENCE, channel=channel, msgSerial=0, presence=[{"action": 2, "clientId": "ann"}])
    member.gets(PRESENCE)
    publishes(publisher(world), channel, 0, score(1), score(9))
    assert data(client.gets(MESSAGE, channel=name)) == ["9"]
    client.gets_nothing()


@pytest.mark.parametrize("capability", [{"*": ["*"]}, {"[filter]other": ["subscribe"]}, {"[filter]own:*": ["publish", "history"]}])
def test_without_the_right_to_it_there_is_no_derived_channel(world: AnyWorld, channel: str, capability: dict[str, list[str]]) -> None:
    client = world.client(access_token=world.token(capability=capability))
    client.gets(CONNECTED)
    name = derived("name", channel)
    client.sends(action=ATTACH, channel=name)
    assert client.gets(ERROR, channel=name)["error"]["code"] == 40160


def test_what_a_captured_edge_learns_by_the_right_to_a_filter(world: AnyWorld, forge: Forge, channel: str) -> None:
    """All that is published from then on, since its client could have asked for it with a filter that leaves everything; no past, no
    members, and nothing of other channels."""
    forged = forge.edge()
    session = forged.admitted(world.token(capability={"[filter]own:*": ["*"]}, client_id="mallory")).session
    with forge.counts(open__capability=1, append__capability=1):
        assert isinstance(forged.asks(forged.open(channel, session)), Opened)
        assert forged.refused(forged.open("private:1", session)) == 40160
        assert forged.refused(forged.append(session, channel)) == 40160
    publishes(publisher(world), channel, 0, score(1))
    assert len([frame for frame in forged.learns() if isinstance(frame, Record)]) == 1
    for name in (channel, derived("name", channel)):
        for what, call in (
            (calls.MEMBERS, calls.Members(channel=name, limit=10, after=0)),
            (calls.REWIND, calls.Rewind(channel=name, limit=10, period_ms=None)),
            (calls.HISTORY, calls.History(channel=name, limit=10)),
        ):
            assert forged.refused(Fetch(forged.number(), session, what, calls.encode(call))) in (40010, 40160)

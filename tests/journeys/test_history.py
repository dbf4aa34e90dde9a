"""History and rewind, client to index and back, in both worlds; then with cores that die."""

from __future__ import annotations

import secrets
from typing import Any
from urllib.parse import quote

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.events import Tailed
from core.log import LogRecord
from relay.model.channel import log_key, partition_of
from relay.model.message import Kind, Message, RecordBody
from tests.journeys.test_journeys import ACK, ATTACH, ATTACHED, CONNECTED, MESSAGE, AnyWorld
from tests.journeys.world import APP, STREAM, Client, World

HAS_BACKLOG = 2


@pytest.fixture
def channel() -> str:
    return f"past:{secrets.token_hex(4)}"


def publisher(world: AnyWorld, **options: Any) -> Any:
    client = world.client(**options)
    client.gets(CONNECTED)
    return client


def publishes(client: Any, channel: str, serial: int, *data: str) -> list[str]:
    """An acknowledged publish; the serials of its messages."""
    client.sends(action=MESSAGE, channel=channel, msgSerial=serial, messages=[{"data": each} for each in data])
    (result,) = client.gets(ACK, msgSerial=serial)["res"]
    serials: list[str] = result["serials"]
    return serials


def path(channel: str, query: str = "") -> str:
    return f"/channels/{quote(channel, safe='')}/messages{query}"


def texts(messages: list[dict[str, Any]]) -> list[str]:
    return [message["data"] for message in messages]


def test_rsl2_what_was_acknowledged_on_one_core_is_in_the_history_of_the_other(world: AnyWorld, channel: str) -> None:
    client = publisher(world)
    expected: list[str] = []
    for serial in range(10):
        serials = publishes(client, channel, serial, f"{serial}a", f"{serial}b")
        expected += [f"{serial}a", f"{serial}b"]
        status, found, links = world.asks("GET", path(channel, "?direction=forwards"), edge=serial % 2)
        assert (status, texts(found), set(links)) == (200, expected, {"first", "current"})
        assert [message["serial"] for message in found[-2:]] == serials
    status, found = world.rest("GET", path(channel))
    assert texts(found) == expected[::-1]
    assert {(m["action"], m["connectionId"], m["id"].partition(":")[0], m["version"]["serial"] == m["serial"]) for m in found} == {
        (0, found[0]["connectionId"], found[0]["connectionId"], True)
    }


def test_tg_a_history_is_paged_to_its_end_while_messages_arrive(world: AnyWorld, channel: str) -> None:
    client = publisher(world)
    for serial in range(7):
        publishes(client, channel, serial, str(serial))
    _, found, links = world.asks("GET", path(channel, "?limit=3"))
    pages, first = [texts(found)], links["first"]
    while "next" in links:
        publishes(client, channel, 7 + len(pages), "later")
        _, found, links = world.asks("GET", path(channel) + links["next"].removeprefix("./messages"), edge=len(pages) % 2)
        pages.append(texts(found))
        assert links["first"] == first
    assert pages == [["6", "5", "4"], ["3", "2", "1"], ["0"]]
    _, found, _ = world.asks("GET", path(channel) + first.removeprefix("./messages"))
    assert texts(found) == pages[0], "what the link says is first stays first"


def test_rtl10b_until_attach_and_rewind_meet_at_the_attach_point(world: AnyWorld, channel: str) -> None:
    client = publisher(world)
    publishes(client, channel, 0, "a", "b")
    publishes(client, channel, 1, "c")
    late = publisher(world, edge=1, binary=True)
    late.sends(action=ATTACH, channel=channel, params={"rewind": "2"})
    attached = late.gets(ATTACHED, params={"rewind": "2"})
    assert attached["flags"] & HAS_BACKLOG
    publishes(client, channel, 2, "d")
    seen = [late.gets(MESSAGE, channel=channel) for _ in range(3)]
    assert [texts(frame["messages"]) for frame in seen] == [["b"], ["c"], ["d"]]
    assert seen[0]["messages"][0]["id"] == f"{seen[0]['id']}:1"
    point = attached["channelSerial"]
    assert seen[1]["channelSerial"] <= point < seen[2]["channelSerial"]
    _, found = world.rest("GET", path(channel, f"?from_serial={point}"))
    assert texts(found) == ["c", "b", "a"]
    late.gets_nothing()


def test_a_rewind_by_time_in_the_name_and_one_that_finds_nothing(world: AnyWorld, channel: str) -> None:
    early = publisher(world)
    early.sends(action=ATTACH, channel=channel, params={"rewind": "1"})
    assert not early.gets(ATTACHED)["flags"] & HAS_BACKLOG
    publishes(publisher(world), channel, 0, "a")
    early.gets(MESSAGE)
    late = publisher(world, edge=1)
    late.sends(action=ATTACH, channel=f"[?rewind=1m]{channel}")
    assert late.gets(ATTACHED, channel=f"[?rewind=1m]{channel}")["flags"] & HAS_BACKLOG
    assert texts(late.gets(MESSAGE, channel=f"[?rewind=1m]{channel}")["messages"]) == ["a"]
    early.gets_nothing()


def test_a_rewind_of_more_than_a_hundred_gives_the_newest_and_says_so(world: AnyWorld, channel: str) -> None:
    client = publisher(world)
    publishes(client, channel, 0, *(str(number) for number in range(60)))
    publishes(client, channel, 1, *(str(number) for number in range(60, 120)))
    late = publisher(world, edge=1)
    late.sends(action=ATTACH, channel=channel, params={"rewind": "110"})
    attached = late.gets(ATTACHED)
    assert (attached["error"]["code"], attached["error"]["statusCode"]) == (90004, 404)
    found = texts(late.gets(MESSAGE)["messages"]) + texts(late.gets(MESSAGE)["messages"])
    assert found == [str(number) for number in range(20, 120)]


def test_a_message_is_found_by_its_serial(world: AnyWorld, channel: str) -> None:
    _, first, second = publishes(publisher(world), channel, 0, "x", "a", "b")
    for serial, data in ((first, "a"), (second, "b")):
        status, message = world.rest("GET", path(channel, f"/{quote(serial, safe='')}"), edge=1)
        assert (status, message["data"], message["serial"]) == (200, data, serial)
    status, answer = world.rest("GET", path(channel, f"/{quote(second[:-1] + '9', safe='')}"))
    assert (status, answer["error"]["code"]) == (404, 40400)


def test_history_needs_its_own_right(world: AnyWorld, channel: str) -> None:
    for operations, status in ((["subscribe", "publish"], 401), (["history"], 200)):
        assert world.rest("GET", path(channel), credential=world.token(capability={channel: operations}))[0] == status


def test_ephemeral_messages_are_in_no_past(world: AnyWorld, channel: str) -> None:
    client = publisher(world)
    client.sends(action=MESSAGE, channel=channel, msgSerial=0, messages=[{"data": "now", "extras": {"ephemeral": True}}])
    client.gets(ACK)
    publishes(client, channel, 1, "kept")
    assert texts(world.rest("GET", path(channel), edge=1)[1]) == ["kept"]


# --- only the fake wire can do this thousands of times ------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.lists(st.sampled_from(["publish", "publish", "publish", "kill 0", "kill 1", "start"]), max_size=12))
def test_rewind_and_what_is_live_make_the_whole_without_gap_or_repetition(seed: int, steps: list[str]) -> None:
    """Attach with a rewind in the middle of everything: what it brings is the end of what was published, whole and in order."""
    world = World(edges=2, cores=2, seed=seed)
    sender, joiner = world.client(edge=0), world.client(edge=1)
    sender.gets(CONNECTED)
    joiner.gets(CONNECTED)
    serial = 0

    def step(what: str) -> None:
        nonlocal serial
        alive = [n for n, core in enumerate(world.cores) if core.alive]
        match what.split():
            case ["publish"]:
                for _ in range(2):
                    sender.posts(action=MESSAGE, channel="c", msgSerial=serial, messages=[{"data": str(serial)}])
                    serial += 1
            case ["kill", number] if int(number) in alive and len(alive) == 2:
                world.kill_core(int(number))
            case ["start"] if len(alive) == 1:
                world.start_core(1 - alive[0])
            case _:
                pass

    for what in steps[: len(steps) // 2]:
        step(what)
        world.run(steps=world.random.randrange(12))
    acknowledged = sum(frame["count"] for frame in drain(sender))
    joiner.posts(action=ATTACH, channel="c", params={"rewind": "3"})
    for what in steps[len(steps) // 2 :]:
        world.run(steps=world.random.randrange(12))
        step(what)
    world.wait(12)
    attached, *frames = drain(joiner)
    assert attached["action"] == ATTACHED, attached
    got = [message["data"] for frame in frames for message in frame["messages"]]
    assert got == [str(number) for number in range(serial - len(got), serial)]
    backlog = [frame for frame in frames if frame["channelSerial"] <= attached["channelSerial"]]
    assert bool(attached["flags"] & HAS_BACKLOG) == bool(backlog)
    status, found = world.rest("GET", f"/channels/c/messages?from_serial={attached['channelSerial']}&limit=1000")
    assert status == 200
    assert len(found) >= acknowledged, "what was acknowledged before the attach lies before the attach point"
    assert len(backlog) == min(3, len(found))
    assert texts(found)[::-1] + got[len(backlog) :] == [str(number) for number in range(serial)]


def drain(client: Client) -> list[dict[str, Any]]:
    frames = []
    while client.has_more():
        frames.append(client.next())
    return frames


def test_a_compacted_topic_is_the_initial_state_of_its_channels() -> None:
    """Row M1.13: `rewind=1` on a channel that nobody was ever on, long after its record was mapped; then what changes."""
    world = World(cores=2)
    log = log_key(APP, "price:ACME")

    def maps(data: str | None, offset: int) -> None:
        body = RecordBody(f"prices:0:{offset}", world.now_ms, None, [Message(id=f"prices:0:{offset}:0", data=data)])
        partition = partition_of(log, STREAM.partitions)
        records = world.log.partitions[partition]
        value = msgspec.msgpack.encode(body)
        records.append(
            LogRecord(STREAM.id, partition, len(records), world.now_ms, log, value, int(Kind.MESSAGE), f"k:prices:prices:0:{offset}")
        )
        for core in world.cores:
            core.inbox.append(Tailed([records[-1]]))
        world.run()

    maps("10", 0)
    maps("11", 1)
    world.wait(3_600)
    client = publisher(world)
    client.sends(action=ATTACH, channel="price:ACME", params={"rewind": "1"})
    assert client.gets(ATTACHED)["flags"] & HAS_BACKLOG
    (first,) = client.gets(MESSAGE)["messages"]
    assert (first["data"], first["id"]) == ("11", "prices:0:1:0")
    maps("12", 2)
    assert texts(client.gets(MESSAGE)["messages"]) == ["12"]
    world.wait(600)
    late = publisher(world, edge=0)
    late.sends(action=ATTACH, channel="price:ACME", params={"rewind": "5"})
    late.gets(ATTACHED)
    assert texts(late.gets(MESSAGE)["messages"]) == ["12"]
    late.gets_nothing()

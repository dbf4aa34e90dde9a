"""History over REST as an edge serves it, and rewind. Specification RSL2, RTL10, TG; Ably protocol docs, 3.3, 8.2, 8.7."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import parse_qs, parse_qsl

import msgspec
import pytest

from relay.link import calls
from relay.link.frames import Admit, Fetch, Open, Opened, Page, Present, Shut
from relay.model.message import Message, RecordBody
from tests.unit.edge.playbook import START_MS, Client, Edge


def body(*messages: Message, id: str = "x:0", at: int = START_MS, connection: str | None = None) -> bytes:
    return msgspec.msgpack.encode(RecordBody(id, at, connection, list(messages) or [Message(name="n", data="d")]))


def admit(edge: Edge, *, capability: dict[str, list[str]] | None = None, link: int = 1) -> None:
    (asked,) = edge.take(Admit, link=link)
    edge.core(edge.admitted(asked.req, f"rest{asked.req:06d}", key="", capability=capability, client_id="*"), link=link)


def fetched(edge: Edge, *, link: int = 1) -> tuple[Fetch, Any]:
    """The one read that the core was asked for, with its body."""
    (fetch,) = edge.take(Fetch, link=link)
    return fetch, calls.decode(fetch.what, fetch.body)


def past(edge: Edge, fetch: Fetch, channel: str, *items: calls.Item, head: int = 50, cursor: str | None = None, link: int = 1) -> None:
    edge.core(Page(fetch.req, 200, calls.encode_past(calls.Past(edge.serial(channel, head), list(items), cursor))), link=link)


def links(edge: Edge, call: int) -> dict[str, str]:
    found = {}
    for name, value in edge.answers[call].headers:
        if name == "link":
            match = re.fullmatch(r"<\./(\w+)\?([^,>]*)>; rel=\"(\w+)\"", value)
            assert match, value
            found[match[3]] = f"{match[1]}?{match[2]}"
    return found


# --- history ----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("segment", ["messages", "history"])
def test_rsl2_history_asks_a_core_with_defaults_and_shows_whole_messages(edge: Edge, segment: str) -> None:
    call = edge.asks("GET", f"/channels/a%2Fb/{segment}")
    admit(edge)
    fetch, read = fetched(edge)
    assert (fetch.what, read) == ("history", calls.History(channel="a/b", limit=100))
    messages = (Message(id="mine", name="n", data=b"\x00\xff", client_id="bob"), Message(data="", encoding="nonsense", extras={"ref": {}}))
    past(edge, fetch, "a/b", calls.Item(9, 0, 1, body(*messages, id="conn:7", connection="conn")))
    status, found, headers = edge.answer(call)
    assert (status, headers["content-type"]) == (200, "application/json")
    first, second = edge.serial("a/b", 9) + ":000", edge.serial("a/b", 9) + ":001"
    assert found == [
        {
            **{"action": 0, "serial": second, "id": "conn:7:1", "data": "", "encoding": "nonsense", "extras": {"ref": {}}},
            **{"connectionId": "conn", "timestamp": START_MS, "version": {"serial": second, "timestamp": START_MS}},
        },
        {
            **{"action": 0, "serial": first, "id": "mine", "name": "n", "data": "AP8=", "encoding": "base64", "clientId": "bob"},
            **{"connectionId": "conn", "timestamp": START_MS, "version": {"serial": first, "timestamp": START_MS}},
        },
    ]


def test_msgpack_answers_have_binary_data(edge: Edge) -> None:
    call = edge.asks("GET", "/channels/c/messages", headers={"accept": "application/x-msgpack"})
    admit(edge)
    fetch, _ = fetched(edge)
    past(edge, fetch, "c", calls.Item(9, 0, 0, body(Message(data=b"\x00\xff"))))
    _, (message,), headers = edge.answer(call)
    assert headers["content-type"] == "application/x-msgpack"
    assert message["data"] == b"\x00\xff"
    assert "encoding" not in message


def test_8_7_links_repeat_what_counts_and_pin_the_end(edge: Edge) -> None:
    call = edge.asks("GET", "/channels/c/messages", query="limit=2&request_id=x")
    admit(edge)
    fetch, _ = fetched(edge)
    cursor = edge.serial("c", 8) + ":001"
    past(edge, fetch, "c", calls.Item(9, 0, 0, body()), calls.Item(8, 1, 1, body(Message(), Message())), cursor=cursor)
    assert len(edge.answer(call)[1]) == 2
    shown = links(edge, call)
    pinned = {"start": "0", "end": str(START_MS), "until": edge.serial("c", 50), "limit": "2", "direction": "backwards"}
    assert dict(parse_qsl(shown["first"].removeprefix("messages?"))) == pinned
    assert shown["current"] == shown["first"]
    assert dict(parse_qsl(shown["next"].removeprefix("messages?"))) == pinned | {"cursor": cursor}

    following = edge.asks("GET", "/channels/c/messages", query=shown["next"].removeprefix("messages?"))
    fetch, read = fetched(edge)
    expected = calls.History(channel="c", limit=2, start=0, until=edge.serial("c", 50), cursor=cursor)
    assert read == expected, "not bounded by `end`: clocks of cores differ, positions do not"
    past(edge, fetch, "c")
    assert edge.answer(following)[1] == []
    assert links(edge, following) == {"first": shown["first"], "current": shown["next"]}, "nothing more"


def test_an_empty_history_has_first_and_current_and_no_next(edge: Edge) -> None:
    call = edge.asks("GET", "/channels/c/history", query="direction=forwards&start=5&end=9")
    admit(edge)
    fetch, read = fetched(edge)
    assert read == calls.History(channel="c", limit=100, backwards=False, start=5, end=9)
    past(edge, fetch, "c")
    assert edge.answer(call)[:2] == (200, [])
    shown = links(edge, call)
    assert set(shown) == {"first", "current"}
    query = parse_qs(shown["first"].removeprefix("history?"))
    assert query == {"start": ["5"], "end": ["9"], "limit": ["100"], "direction": ["forwards"]}


@pytest.mark.parametrize("name", ["from_serial", "fromSerial"])
def test_rtl10b_until_attach(edge: Edge, name: str) -> None:
    call = edge.asks("GET", "/channels/c/messages", query=f"{name}=abc")
    admit(edge)
    fetch, read = fetched(edge)
    assert read == calls.History(channel="c", limit=100, upto="abc")
    edge.refused(fetch.req, 90008)
    assert edge.answer(call)[1]["error"]["code"] == 90008


@pytest.mark.parametrize(
    ("query", "code"),
    [
        *(
            ("limit=0", 40003),
            ("limit=1001", 40003),
            ("limit=x", 40003),
            ("limit=-1", 40003),
            ("limit=1.5", 40003),
            ("limit=\u0664", 40003),
        ),
        *(("start=2&end=1", 40000), ("start=x", 40003), ("end=1e3", 40003), ("end=99999999999999999", 40003)),
        *(("direction=sideways", 40003), ("direction=forwards&from_serial=a", 40003)),
    ],
)
def test_bad_params_are_refused_without_asking_a_core(edge: Edge, query: str, code: int) -> None:
    call = edge.asks("GET", "/channels/c/messages", query=query)
    admit(edge)
    edge.take(Present)
    edge.core_gets_nothing()
    status, answer, headers = edge.answer(call)
    assert (status, answer["error"]["code"], headers["x-ably-errorcode"]) == (400, code, str(code))


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("/channels/%3Ax/messages", 40010),
        ("/channels/[meta]x/messages", 40010),
        ("/channels/[meta]channel.lifecycle/presence/history", 40010),
        ("/channels/d/messages", 40160),
    ],
)
def test_names_and_rights_are_checked_here_first(edge: Edge, path: str, code: int) -> None:
    call = edge.asks("GET", path)
    admit(edge, capability={"c": ["history"], "d": ["subscribe", "publish"]})
    assert edge.answer(call)[1]["error"]["code"] == code
    assert edge.take(Fetch) == []


def test_a_single_message(edge: Edge) -> None:
    serial = edge.serial("c", 9) + ":001"
    call = edge.asks("GET", f"/channels/c/messages/{serial.replace(':', '%3A')}")
    admit(edge)
    fetch, read = fetched(edge)
    assert (fetch.what, read) == ("message", calls.OneMessage(channel="c", serial=serial))
    past(edge, fetch, "c", calls.Item(9, 1, 1, body(Message(data="a"), Message(data="b"))))
    status, message, _ = edge.answer(call)
    assert (status, message["data"], message["serial"]) == (200, "b", serial)
    assert links(edge, call) == {}


def test_a_read_goes_to_another_core_when_its_own_dies(edge: Edge) -> None:
    call = edge.asks("GET", "/channels/c/messages")
    admit(edge)
    fetched(edge)
    second = edge.link_up("core-2")
    edge.link_lost(1)
    fetch, _ = fetched(edge, link=second)
    past(edge, fetch, "c", link=second)
    assert edge.answer(call)[0] == 200
    again = edge.asks("GET", "/channels/c/messages")
    edge.link_lost(second)
    assert edge.answer(again)[0] == 503


@pytest.mark.parametrize(
    "answer", [b"", b"\xc1", calls.encode_past(calls.Past("x", [])), calls.encode_past(calls.Past("s", [calls.Item(0, 0, 0, b"")]))]
)
def test_an_unreadable_page_costs_one_request(edge: Edge, answer: bytes) -> None:
    call = edge.asks("GET", "/channels/c/messages")
    admit(edge)
    fetch, _ = fetched(edge)
    edge.core(Page(fetch.req, 200, answer))
    assert edge.answer(call)[1]["error"]["code"] == 50001


# --- rewind -----------------------------------------------------------------------------------------------------------------------------


def attaching(edge: Edge, client: Client, channel: str = "c", **fields: Any) -> tuple[Open, Fetch, Any]:
    """ATTACH with a rewind; the channel is open at 50, and its core has been asked for the past."""
    edge.sends(client, action=10, channel=channel, **fields)
    (opening,) = edge.take(Open)
    edge.core(Opened(opening.req, edge.serial(opening.channel, 50)))
    edge.gets_nothing(client)
    return (opening, *fetched(edge))


def test_rewind_comes_after_attached_oldest_first_and_before_what_is_live(edge: Edge) -> None:
    client = edge.connect()
    opening, fetch, read = attaching(edge, client, params={"rewind": "2"})
    assert (fetch.what, fetch.session, read) == ("rewind", client.session, calls.Rewind(channel="c", limit=2))
    edge.core(edge.record(opening.req, 51), edge.record(opening.req, 53))
    edge.gets_nothing(client)
    past(edge, fetch, "c", calls.Item(51, 0, 0, body()), calls.Item(48, 1, 1, body(Message(data="a"), Message(data="b"))), head=52)
    # The attach point is where the backlog ends: history up to it and what is live from there on make the whole.
    edge.gets(client, action=11, channelSerial=edge.serial("c", 52), flags=edge_flags(backlog=True), params={"rewind": "2"}, error=None)
    older = edge.gets(client, action=15, channelSerial=edge.serial("c", 48))
    assert [(message["id"], message["data"], message["serial"]) for message in older["messages"]] == [
        ("x:0:1", "b", edge.serial("c", 48) + ":001")
    ]
    edge.gets(client, action=15, channelSerial=edge.serial("c", 51))
    edge.gets(client, action=15, channelSerial=edge.serial("c", 53))
    edge.core(edge.record(opening.req, 54))
    edge.gets(client, action=15, channelSerial=edge.serial("c", 54))
    edge.gets_nothing(client)


def edge_flags(*, backlog: bool = False) -> int:
    return 65536 | 131072 | 262144 | 524288 | 2097152 | (2 if backlog else 0)


def test_a_core_that_is_ahead_of_the_live_lane_doubles_nothing(edge: Edge) -> None:
    client = edge.connect()
    opening, fetch, _ = attaching(edge, client, channel="[?rewind=1m]c")
    edge.behind = True
    past(edge, fetch, "c", calls.Item(55, 0, 0, body()), calls.Item(54, 0, 0, body()), head=55)
    edge.gets(client, action=11, channel="[?rewind=1m]c", channelSerial=edge.serial("c", 55))
    edge.gets(client, channel="[?rewind=1m]c", channelSerial=edge.serial("c", 54))
    edge.gets(client, channelSerial=edge.serial("c", 55))
    edge.core(*(edge.record(opening.req, offset) for offset in (54, 55, 56)))
    edge.gets(client, channelSerial=edge.serial("c", 56))
    edge.gets_nothing(client)


def test_nothing_to_rewind_sets_no_backlog(edge: Edge) -> None:
    client = edge.connect()
    _, fetch, _ = attaching(edge, client, params={"rewind": "5"})
    past(edge, fetch, "c")
    edge.gets(client, action=11, flags=edge_flags(), error=None)


@pytest.mark.parametrize(
    ("params", "read", "found", "code"),
    [
        ({"rewind": "100"}, calls.Rewind(channel="c", limit=100), 100, None),
        ({"rewind": "101"}, calls.Rewind(channel="c", limit=100), 100, 90004),
        ({"rewind": "90s"}, calls.Rewind(channel="c", limit=100, period_ms=90_000), 100, 90004),
        ({"rewind": "2m", "rewindLimit": "10"}, calls.Rewind(channel="c", limit=10, period_ms=120_000), 10, None),
        ({"rewind": "2m", "rewindLimit": "500"}, calls.Rewind(channel="c", limit=100, period_ms=120_000), 100, 90004),
        ({"rewind": "3"}, calls.Rewind(channel="c", limit=3), 2, 90004),
    ],
    ids=["limit", "above", "time", "rewindLimit", "rewindLimit-above", "bytes"],
)
def test_what_a_rewind_leaves_out_is_told(edge: Edge, params: dict[str, str], read: calls.Rewind, found: int, code: int | None) -> None:
    client = edge.connect()
    _, fetch, asked = attaching(edge, client, params=params)
    assert asked == read
    items = [calls.Item(50 - number, 0, 0, body()) for number in range(found)]
    past(edge, fetch, "c", *items, cursor=edge.serial("c", 1) + ":000")
    attached = edge.gets(client, action=11)
    assert attached.get("error", {}).get("code") == code
    assert len(client.inbox) == found


@pytest.mark.parametrize(
    "fields",
    [
        {"flags": 32, "params": {"rewind": "1"}},
        {"params": {"rewind": "0"}},
        {"params": {"rewind": "2m", "rewindLimit": "0"}},
        {"params": {"rewind": "1", "modes": "publish"}},
        {"params": {"rewindLimit": "5"}},
    ],
)
def test_no_rewind_for_a_resumed_attach_or_one_that_does_not_subscribe(edge: Edge, fields: dict[str, Any]) -> None:
    edge.attach(edge.connect(), "c", **fields)
    assert edge.take(Fetch) == []


def test_no_rewind_with_a_serial_nor_for_an_attach_that_is_repeated(edge: Edge) -> None:
    client = edge.connect()
    edge.attach(client, "c")
    edge.sends(client, action=10, channel="c", params={"rewind": "1"})
    edge.gets(client, action=11, params={"rewind": "1"})
    other = edge.connect()
    edge.sends(other, action=10, channel="c", channelSerial=edge.serial("c", 50), params={"rewind": "1"})
    edge.gets(other, action=11, flags=edge_flags() | 4)
    assert edge.take(Fetch) == []


@pytest.mark.parametrize(
    "params", [{"rewind": "-1"}, {"rewind": "1h"}, {"rewind": "two"}, {"rewind": ""}, {"rewind": "1m", "rewindLimit": "5s"}]
)
def test_a_rewind_that_cannot_be_meant_fails_the_channel(edge: Edge, params: dict[str, str]) -> None:
    client = edge.connect()
    edge.sends(client, action=10, channel="c", params=params)
    edge.gets(client, action=9, channel="c", code=40003)


def test_echo_false_holds_for_the_backlog_too(edge: Edge) -> None:
    client = edge.connect()
    _, fetch, _ = attaching(edge, client, params={"rewind": "2", "echo": "false"})
    past(edge, fetch, "c", calls.Item(49, 0, 0, body(connection=client.session)))
    edge.gets(client, action=11, flags=edge_flags())
    edge.gets_nothing(client)


def test_a_lost_core_makes_a_rewind_begin_again(edge: Edge) -> None:
    client = edge.connect()
    _, former, _ = attaching(edge, client, params={"rewind": "1"})
    second = edge.link_up("core-2")
    edge.link_lost(1)
    (opening,) = edge.take(Open, link=second)
    edge.core(Opened(opening.req, edge.serial("c", 60)), link=second)
    fetch, _ = fetched(edge, link=second)
    past(edge, former, "c", calls.Item(49, 0, 0, body()), link=second)
    edge.gets_nothing(client)
    past(edge, fetch, "c", calls.Item(59, 0, 0, body()), head=60, link=second)
    edge.gets(client, action=11, channelSerial=edge.serial("c", 60))
    edge.gets(client, action=15, channelSerial=edge.serial("c", 59))


def test_a_rewind_that_is_refused_or_unreadable_sends_the_client_round_again(edge: Edge) -> None:
    client = edge.connect()
    _, fetch, _ = attaching(edge, client, params={"rewind": "1"})
    edge.refused(fetch.req, 50003)
    edge.gets(client, action=13, channel="c", code=50003)
    edge.sends(client, action=10, channel="c", params={"rewind": "1"})
    fetch, _ = fetched(edge)
    edge.core(Page(fetch.req, 200, b"\xc1"))
    edge.gets(client, action=13, channel="c", code=50003)
    edge.gets_nothing(client)


def test_a_detach_ends_a_rewind(edge: Edge) -> None:
    client = edge.connect()
    _, fetch, _ = attaching(edge, client, params={"rewind": "1"})
    edge.sends(client, action=12, channel="c")
    edge.gets(client, action=13)
    past(edge, fetch, "c", calls.Item(49, 0, 0, body()))
    edge.gets_nothing(client)
    assert edge.take(Shut) == [], "a rewind opens nothing that could be shut"

"""Presence at an edge: what a client may change, whom it is told of, and how it comes to know who is there."""

from __future__ import annotations

import itertools
import random
from typing import Any

import msgspec
import pytest

from edge.ably.codec import JSON, MSGPACK
from edge.ably.protocol import DEFAULT_MODES, Flag, Mode
from relay.link import calls
from relay.link.calls import MemberItem, MemberPage
from relay.link.frames import Admit, Append, Depart, Fetch, Lost, Open, Opened, Page, Unknown
from relay.model.errors import ErrorInfo
from relay.model.limits import EdgeLimits
from relay.model.message import PresenceAction, PresenceItem
from tests.unit.edge.playbook import Client, Edge

PRESENT, ENTER, LEAVE, UPDATE = 1, 2, 3, 4
HAS_PRESENCE = int(Flag.HAS_PRESENCE)
NO_PRESENCE_SUBSCRIBE = int(Mode.PRESENCE | Mode.PUBLISH | Mode.SUBSCRIBE)


def enters(edge: Edge, client: Client, serial: int, *items: dict[str, Any], channel: str = "c") -> None:
    presence = list(items) or [{"action": ENTER, "clientId": "ann"}]
    edge.sends(client, action=14, channel=channel, msgSerial=serial, presence=presence)


def item(action: int, client_id: str, **fields: Any) -> PresenceItem:
    return PresenceItem(PresenceAction(action), client_id, **fields)


def member(number: int, offset: int | None = None, *, connection: str = "elsewhere0", data: Any = None, **fields: Any) -> MemberItem:
    return MemberItem(
        number,
        connection,
        f"m{number}",
        f"{connection}:{number}:0",
        1_700_000_000_000,
        number if offset is None else offset,
        data,
        **fields,
    )


def page(edge: Edge, fetch: Fetch, members: list[MemberItem], after: int | None = None, *, at: int = 50, link: int = 1) -> None:
    body = MemberPage(edge.serial(calls.decode(fetch.what, fetch.body).channel, at), members, after)  # type: ignore[attr-defined]
    edge.core(Page(fetch.req, 200, calls.encode_members(body)), link=link)


def asked(edge: Edge, link: int = 1) -> tuple[Fetch, calls.Members]:
    (fetch,) = edge.take(Fetch, link=link)
    call = calls.decode(fetch.what, fetch.body)
    assert fetch.what == calls.MEMBERS
    assert isinstance(call, calls.Members)
    return fetch, call


def synced(edge: Edge, client: Client, channel: str = "c") -> dict[str, dict[str, Any]]:
    """The next messages of `client` are one whole SYNC; its items by clientId."""
    found: dict[str, dict[str, Any]] = {}
    ids = set()
    while True:
        message = edge.gets(client, action=16, channel=channel)
        sync_id, _, cursor = message["channelSerial"].partition(":")
        ids.add(sync_id)
        for entry in message["presence"]:
            assert entry["action"] == PRESENT
            assert entry["id"]
            assert entry["connectionId"]
            assert entry["timestamp"]
            found[entry["clientId"]] = entry
        if not cursor:
            assert len(ids) == 1
            return found


# --- changes ---------------------------------------------------------------------------------------------------------------------------


def test_an_enter_is_appended_under_its_msg_serial_and_acked_in_turn_with_messages(edge: Edge) -> None:
    client = edge.connect(client_id="ann")
    edge.attach(client, "c")
    enters(edge, client, 0, {"action": ENTER, "data": "hello"})
    edge.sends(client, action=15, channel="c", msgSerial=1, messages=[{"name": "n"}])
    first, second = edge.take(Append)
    assert first.id == f"c:{client.session}:0"
    assert first.messages == []
    assert first.presence == [item(ENTER, "ann", data="hello")]
    serial = edge.appended(second, 52)
    edge.gets_nothing(client)
    edge.appended(first, 51)
    edge.gets(client, action=1, msgSerial=0, count=2, res=[{"serials": []}, {"serials": [f"{serial}:000"]}])


def test_250_members_in_one_message(edge: Edge) -> None:
    client = edge.connect()
    opening, _ = edge.attach(client, "c")
    enters(edge, client, 0, *[{"action": ENTER, "clientId": f"m{number}"} for number in range(250)])
    (append,) = edge.take(Append)
    assert len(append.presence) == 250
    edge.core(edge.change(opening.req, 51, client.session, *append.presence, id=f"{client.session}:0"))
    told = edge.gets(client, action=14, id=f"{client.session}:0", connectionId=client.session)
    assert [entry["clientId"] for entry in told["presence"]] == [f"m{number}" for number in range(250)]
    assert told["presence"][249]["id"] == f"{client.session}:0:249"
    edge.appended(append, 51)
    edge.gets(client, action=1, msgSerial=0, res=[{"serials": []}])


@pytest.mark.parametrize(
    ("client_id", "entry", "code"),
    [
        (None, {"action": ENTER}, 91000),
        ("*", {"action": ENTER}, 40012),
        ("ann", {"action": ENTER, "clientId": "bob"}, 40012),
        ("ann", {"action": 1}, 40000),
        ("ann", {"action": ENTER, "data": 7}, 40013),
        ("ann", {"action": ENTER, "data": "x" * 70_000}, 40009),
    ],
)
def test_what_may_not_be_changed_is_nacked(edge: Edge, client_id: str | None, entry: dict[str, Any], code: int) -> None:
    client = edge.connect(client_id=client_id)
    edge.attach(client, "c")
    enters(edge, client, 0, entry)
    edge.gets(client, action=2, msgSerial=0, count=1, code=code)
    assert edge.take(Append) == []
    assert client.closed is None


def test_name_then_capability_then_attachment_then_mode_are_refused_in_this_order(edge: Edge) -> None:
    client = edge.connect(capability={"c": ["subscribe", "presence"], "other": ["subscribe"]}, client_id=None)
    for serial, (channel, code) in enumerate([("", 40010), ("other", 40160), ("c", 91001)]):
        enters(edge, client, serial, {"action": ENTER}, channel=channel)
        edge.gets(client, action=2, msgSerial=serial, code=code)
    edge.attach(client, "c", flags=int(Mode.SUBSCRIBE | Mode.PRESENCE_SUBSCRIBE))
    enters(edge, client, 3, {"action": ENTER})
    edge.gets(client, action=2, msgSerial=3, code=40165)


def test_what_may_be_a_repetition_after_a_resume_does_not_wait_for_the_attach(edge: Edge) -> None:
    client = edge.connect("key=app.key:secret&v=6&resume=aaa!0.mac", client_id="ann")
    enters(edge, client, 4)
    (append,) = edge.take(Append)
    assert not append.fresh
    edge.appended(append, 51)
    edge.gets(client, action=1, msgSerial=4)


def test_what_the_core_refuses_is_nacked_and_what_it_cannot_tell_ends_in_a_reconnect(edge: Edge) -> None:
    client = edge.connect()
    edge.attach(client, "c")
    enters(edge, client, 0)
    edge.refused(edge.take(Append)[0].req, 91003)
    edge.gets(client, action=2, msgSerial=0, code=91003)
    enters(edge, client, 1)
    edge.core(Unknown(edge.take(Append)[0].req))
    edge.wait(6)
    edge.gets(client, action=6, code=50003)


# --- who is told -----------------------------------------------------------------------------------------------------------------------


def test_everybody_with_the_mode_is_told_in_both_formats_and_each_spelling(edge: Edge) -> None:
    json, packed, spelled = edge.connect(), edge.connect("key=app.key:secret&v=6&format=msgpack"), edge.connect()
    opening, _ = edge.attach(json, "c")
    for client, channel in ((packed, "c"), (spelled, "[?echo=false]c")):
        edge.sends(client, action=10, channel=channel)
        edge.gets(client, action=11)
    entering = item(ENTER, "ann", data=b"\0\1", encoding="utf-8/cipher+aes-128-cbc")
    edge.core(edge.change(opening.req, 51, "elsewhere0", entering, id="elsewhere0:7"))
    for client, channel, data, encoding in (
        (json, "c", "AAE=", "utf-8/cipher+aes-128-cbc/base64"),
        (packed, "c", b"\0\1", "utf-8/cipher+aes-128-cbc"),
        (spelled, "[?echo=false]c", "AAE=", "utf-8/cipher+aes-128-cbc/base64"),
    ):
        told = edge.gets(client, action=14, channel=channel, channelSerial=edge.serial("c", 51), timestamp=edge.now_ms)
        assert told["connectionId"] == "elsewhere0"
        (entry,) = told["presence"]
        assert entry == {"action": ENTER, "id": "elsewhere0:7:0", "clientId": "ann", "data": data, "encoding": encoding}


def test_only_those_with_the_mode_are_told_and_the_member_itself_once_whatever_its_modes(edge: Edge) -> None:
    reader = edge.connect()
    opening, _ = edge.attach(reader, "c", flags=NO_PRESENCE_SUBSCRIBE)
    entering = edge.connect("key=app.key:secret&v=6&echo=false")
    edge.sends(entering, action=10, channel="c")
    edge.gets(entering, action=11)
    modest = edge.connect()
    edge.sends(modest, action=10, channel="c", flags=NO_PRESENCE_SUBSCRIBE)
    edge.gets(modest, action=11)
    edge.core(edge.change(opening.req, 51, entering.session, item(ENTER, "ann")))
    edge.gets(entering, action=14)
    edge.gets_nothing(entering, modest, reader)
    edge.core(edge.change(opening.req, 52, modest.session, item(ENTER, "bob")))
    edge.gets(modest, action=14)
    edge.gets(entering, action=14)
    edge.gets_nothing(entering, modest, reader)


def test_a_member_that_may_not_read_is_told_from_the_answer(edge: Edge) -> None:
    client = edge.connect(capability={"c": ["presence"]}, client_id="ann")
    edge.sends(client, action=10, channel="c")
    edge.gets(client, action=11, flags=int(Mode.PRESENCE))
    enters(edge, client, 0, {"action": ENTER, "data": "x"})
    serial = edge.appended(edge.take(Append)[0], 51)
    told = edge.gets(client, action=14, channel="c", channelSerial=serial, id=f"{client.session}:0", connectionId=client.session)
    assert told["presence"] == [{"action": ENTER, "id": f"{client.session}:0:0", "clientId": "ann", "data": "x"}]
    edge.gets(client, action=1, msgSerial=0)
    for number in (1, 2):
        enters(edge, client, number, {"action": LEAVE})
        edge.appended(edge.take(Append)[0], 51 + number)
        if number == 1:  # the second leave is of a non-member
            edge.gets(client, action=14)
        edge.gets(client, action=1, msgSerial=number)


def test_rules_of_the_set(edge: Edge) -> None:
    client = edge.connect()
    opening, _ = edge.attach(client, "c")
    ref, conn = opening.req, "elsewhere0"

    def told(offset: int, *items: PresenceItem, **fields: Any) -> list[tuple[int, str | None]]:
        edge.core(edge.change(ref, offset, conn, *items, **fields))
        if not client.inbox:
            return []
        return [(entry["action"], entry.get("data")) for entry in edge.gets(client, action=14)["presence"]]

    assert told(51, item(LEAVE, "ann")) == []  # no member
    assert told(52, item(UPDATE, "ann", data="one")) == [(ENTER, "one")]
    assert told(53, item(ENTER, "ann", data="two")) == [(ENTER, "two")]
    assert told(54, item(UPDATE, "ann", data="three")) == [(UPDATE, "three")]
    assert told(55, item(ENTER, "ann", data="old", id=f"{conn}:53:0")) == []  # an older id is not newer (RTP2b2)
    assert told(56, item(LEAVE, "ann")) == [(LEAVE, "three")]
    assert told(57, item(ENTER, "ann", id=f"{conn}:54:0"), item(LEAVE, "ann", data="bye")) == [(ENTER, None), (LEAVE, "bye")]
    assert told(58, item(LEAVE, "ann")) == []


def test_messages_and_changes_of_presence_stay_in_the_order_of_the_log(edge: Edge) -> None:
    client = edge.connect()
    opening, _ = edge.attach(client, "c")
    ref = opening.req
    edge.core(edge.record(ref, 51), edge.change(ref, 52, "elsewhere0", item(ENTER, "ann")), edge.record(ref, 53))
    assert [edge.gets(client)["channelSerial"] for _ in range(3)] == [edge.serial("c", offset) for offset in (51, 52, 53)]


# --- SYNC ------------------------------------------------------------------------------------------------------------------------------


def test_members_are_loaded_in_pages_and_a_sync_follows_the_attached(edge: Edge) -> None:
    client = edge.connect()
    _, attached = edge.attach(client, "c", members=1_000)
    assert attached["flags"] == DEFAULT_MODES | HAS_PRESENCE
    edge.gets_nothing(client)
    fetch, call = asked(edge)
    assert (call.channel, call.limit, call.after, call.fresh) == ("c", 500, 0, False)
    page(edge, fetch, [member(number) for number in range(1, 501)], 500)
    edge.gets_nothing(client)
    fetch, call = asked(edge)
    assert call.after == 500
    page(edge, fetch, [member(number, data="d") for number in range(501, 1_001)])
    sizes = [len(message["presence"]) for message in client.inbox]
    assert sizes == [100] * 10
    found = synced(edge, client)
    assert len(found) == 1_000
    assert found["m777"] == {
        "action": PRESENT,
        "id": "elsewhere0:777:0",
        "clientId": "m777",
        "connectionId": "elsewhere0",
        "timestamp": 1_700_000_000_000,
        "data": "d",
    }
    late = edge.connect("key=app.key:secret&v=6&format=msgpack")
    edge.sends(late, action=10, channel="c")
    edge.gets(late, action=11, flags=DEFAULT_MODES | HAS_PRESENCE)
    assert len(synced(edge, late)) == 1_000
    assert edge.take(Fetch) == []


def test_without_members_or_without_the_mode_there_is_neither_flag_nor_sync(edge: Edge) -> None:
    client = edge.connect()
    _, attached = edge.attach(client, "c")
    assert attached["flags"] == DEFAULT_MODES
    modest = edge.connect()
    _, attached = edge.attach(modest, "d", members=3, flags=NO_PRESENCE_SUBSCRIBE)
    assert attached["flags"] == NO_PRESENCE_SUBSCRIBE
    fetch, _ = asked(edge)
    page(edge, fetch, [member(number) for number in (1, 2, 3)])
    edge.gets_nothing(client, modest)


def test_changes_while_loading_and_pages_of_other_times_agree_in_the_end(edge: Edge) -> None:
    """Whatever the positions of the pages are: who is there in the end is what the log says."""
    client = edge.connect()
    opening, _ = edge.attach(client, "c", members=4)
    ref = opening.req
    fetch, _ = asked(edge)
    edge.core(
        edge.change(ref, 51, "elsewhere0", item(LEAVE, "m1")),
        edge.change(ref, 52, "elsewhere0", item(UPDATE, "m2", data="new")),
        edge.change(ref, 53, "elsewhere0", item(ENTER, "m9")),
    )
    # The page is of offset 50, but for m4, which it has as of offset 60; m3 has left at 61.
    page(edge, fetch, [member(1, 1), member(2, 2, data="old"), member(3, 3), member(4, 60, data="ahead")])
    client.inbox = [message for message in client.inbox if message["action"] == 16]
    found = synced(edge, client)
    assert {name: entry.get("data") for name, entry in found.items()} == {"m2": "new", "m3": None, "m4": "ahead", "m9": None}
    edge.core(
        edge.change(ref, 60, "elsewhere0", item(UPDATE, "m4", data="ahead"), id="elsewhere0:4"),
        edge.change(ref, 61, "elsewhere0", item(LEAVE, "m3")),
        edge.change(ref, 62, "elsewhere0", item(LEAVE, "m1")),
    )
    assert [entry["action"] for message in client.inbox for entry in message["presence"]] == [UPDATE, LEAVE]
    client.inbox.clear()
    edge.sends(client, action=16, channel="c")
    assert sorted(synced(edge, client)) == ["m2", "m4", "m9"]


def test_a_sync_asked_for_has_another_id(edge: Edge) -> None:
    client = edge.connect()
    opening, _ = edge.attach(client, "c")
    edge.core(edge.change(opening.req, 51, "elsewhere0", item(ENTER, "ann")))
    edge.gets(client, action=14)
    ids = set()
    for _ in range(3):
        edge.sends(client, action=16, channel="c")
        ids.add(edge.gets(client, action=16)["channelSerial"])
    assert len(ids) == 3
    edge.sends(client, action=16, channel="never attached")
    edge.gets_nothing(client)


def test_a_big_set_is_sent_only_as_fast_as_the_client_takes_it() -> None:
    edge = Edge(limits=EdgeLimits(sync_window_bytes=20_000))
    edge.slow = True
    client, other = edge.connect(), edge.connect()
    opening, _ = edge.attach(client, "c", members=2_000)
    edge.sends(other, action=10, channel="c")
    edge.gets(other, action=11)
    for start in range(0, 2_000, 500):
        fetch, _ = asked(edge)
        numbers = range(start + 1, start + 501)
        page(edge, fetch, [member(number, data="x" * 100) for number in numbers], start + 500 if start < 1_500 else None)
    turns = 0
    seen: set[str] = set()
    while edge.full:
        assert edge.full.count(client.number) == 1
        assert len(client.raw) < 60_000
        client.raw = b""
        edge.core(edge.change(opening.req, 60 + turns, "elsewhere0", item(LEAVE, f"m{2_000 - turns}")))
        edge.drain()
        turns += 1
    assert turns >= 15
    left = set()
    for message in client.inbox:
        for entry in message["presence"]:
            (left if entry["action"] == LEAVE else seen).add(entry["clientId"])
    assert seen | left == {f"m{number}" for number in range(1, 2_001)}
    assert client.inbox[-1]["channelSerial"].endswith(":") or client.inbox[-1]["action"] == 14
    assert sum(message["action"] == 16 and message["channelSerial"].endswith(":") for message in client.inbox) == 1
    assert sum(message["action"] == 16 for message in other.inbox) == sum(message["action"] == 16 for message in client.inbox)


def test_members_with_much_data_are_sent_in_small_pages(edge: Edge) -> None:
    client = edge.connect()
    edge.attach(client, "c", members=20)
    fetch, _ = asked(edge)
    page(edge, fetch, [member(number, data="x" * 60_000) for number in range(1, 21)])
    assert max(len(message["presence"]) for message in client.inbox) == 2
    assert len(synced(edge, client)) == 20


def test_a_detach_ends_a_sync_and_an_attach_begins_another() -> None:
    edge = Edge(limits=EdgeLimits(sync_window_bytes=1))
    edge.slow = True
    client = edge.connect()
    edge.attach(client, "c", members=300)
    fetch, _ = asked(edge)
    page(edge, fetch, [member(number) for number in range(1, 301)])
    first = edge.gets(client, action=16)
    edge.sends(client, action=12, channel="c")
    edge.gets(client, action=13)
    edge.drain()
    edge.gets_nothing(client)
    edge.wait(1)
    edge.sends(client, action=10, channel="c")
    edge.gets(client, action=11, flags=DEFAULT_MODES | HAS_PRESENCE)
    edge.slow = False
    edge.drain()
    assert client.inbox[0]["channelSerial"].partition(":")[0] != first["channelSerial"].partition(":")[0]
    assert len(synced(edge, client)) == 300


# --- lost links ------------------------------------------------------------------------------------------------------------------------


def test_the_set_survives_a_lost_link_and_goes_on_with_the_records(edge: Edge) -> None:
    client = edge.connect()
    opening, _ = edge.attach(client, "c")
    edge.core(edge.change(opening.req, 51, "elsewhere0", item(ENTER, "ann"), item(ENTER, "bob")))
    edge.gets(client, action=14)
    edge.link_lost()
    link = edge.link_up()
    (again,) = edge.take(Open, link=link)
    assert again.after == edge.serial("c", 51)
    edge.core(edge.change(again.req, 52, "elsewhere0", item(LEAVE, "bob")), link=link)
    edge.core(Opened(again.req, edge.serial("c", 52), members=1), link=link)
    edge.gets(client, action=14, channelSerial=edge.serial("c", 52))
    edge.gets_nothing(client)
    edge.sends(client, action=16, channel="c")
    assert list(synced(edge, client)) == ["ann"]


def test_a_core_lost_while_loading_only_delays_the_sync(edge: Edge) -> None:
    client = edge.connect()
    edge.attach(client, "c", members=600)
    fetch, _ = asked(edge)
    page(edge, fetch, [member(number) for number in range(1, 501)], 500)
    edge.link_lost()
    link = edge.link_up()
    (again,) = edge.take(Open, link=link)
    edge.core(edge.change(again.req, 51, "elsewhere0", item(LEAVE, "m1")), link=link)
    edge.core(Opened(again.req, edge.serial("c", 51), members=599), link=link)
    assert edge.gets(client, action=14)["presence"][0]["action"] == LEAVE
    fetch, call = asked(edge, link)
    assert call.after == 0
    edge.wait(9)  # no answer
    fetch, call = asked(edge, link)
    edge.refused(fetch.req, 50003, link=link)
    edge.wait(2)
    fetch, call = asked(edge, link)
    page(edge, fetch, [member(number) for number in range(2, 502)], 501, link=link)
    fetch, call = asked(edge, link)
    assert call.after == 501
    page(edge, fetch, [member(number) for number in range(502, 601)], link=link)
    client.inbox = [message for message in client.inbox if message["action"]]
    assert len(synced(edge, client)) == 599


def test_after_a_gap_the_set_is_loaded_again_and_everybody_gets_a_sync(edge: Edge) -> None:
    client = edge.connect()
    opening, _ = edge.attach(client, "c")
    edge.core(edge.change(opening.req, 51, "elsewhere0", item(ENTER, "ann")))
    edge.gets(client, action=14)
    edge.core(Lost(opening.req, ErrorInfo.of(50001, "behind")))
    edge.wait(2)
    (again,) = edge.take(Open)
    edge.core(Opened(again.req, edge.serial("c", 90), ErrorInfo.of(90003, "expired"), members=1))
    edge.gets(client, action=11, flags=DEFAULT_MODES | HAS_PRESENCE, code=90003)
    fetch, _ = asked(edge)
    page(edge, fetch, [member(7)], at=90)
    assert list(synced(edge, client)) == ["m7"]


def test_a_resumed_attach_gets_a_sync_in_place_of_what_it_missed(edge: Edge) -> None:
    first, second = edge.connect(), edge.connect()
    opening, _ = edge.attach(first, "c")
    edge.core(edge.change(opening.req, 51, "elsewhere0", item(ENTER, "ann")), edge.record(opening.req, 52))
    edge.sends(second, action=10, channel="c", channelSerial=edge.serial("c", 50))
    (replay,) = edge.take(Open)
    edge.core(
        edge.change(replay.req, 51, "elsewhere0", item(ENTER, "ann")),
        edge.record(replay.req, 52),
        Opened(replay.req, edge.serial("c", 52), members=1),
    )
    edge.gets(second, action=11, flags=DEFAULT_MODES | Flag.RESUMED | Flag.HAS_BACKLOG | HAS_PRESENCE)
    edge.gets(second, action=15, channelSerial=edge.serial("c", 52))
    assert list(synced(edge, second)) == ["ann"]
    edge.core(edge.change(opening.req, 53, "elsewhere0", item(LEAVE, "ann")))
    edge.gets(second, action=14)
    edge.sends(second, action=12, channel="c")
    edge.gets(second, action=13)
    edge.sends(second, action=10, channel="c", channelSerial=edge.serial("c", 53))
    edge.gets(second, action=11, flags=DEFAULT_MODES | Flag.RESUMED)  # nobody is there: the client empties its set
    edge.gets_nothing(second)


def test_a_replay_that_ran_ahead_syncs_when_the_channel_has_caught_up(edge: Edge) -> None:
    first, second = edge.connect(), edge.connect()
    opening, _ = edge.attach(first, "c")
    edge.sends(second, action=10, channel="c", channelSerial=edge.serial("c", 40))
    (replay,) = edge.take(Open)
    entering = edge.change(replay.req, 51, "elsewhere0", item(ENTER, "ann"))
    edge.core(entering, Opened(replay.req, edge.serial("c", 51), members=1))
    edge.gets(second, action=11, flags=DEFAULT_MODES | Flag.RESUMED | HAS_PRESENCE)
    edge.gets_nothing(second)
    edge.core(edge.change(opening.req, 51, "elsewhere0", item(ENTER, "ann")))
    edge.core(edge.record(opening.req, 52))
    assert list(synced(edge, second)) == ["ann"]
    edge.gets(second, action=15)


def test_a_set_that_is_too_much_for_this_edge_is_given_up() -> None:
    edge = Edge(limits=EdgeLimits(presence_bytes=50_000))
    client = edge.connect()
    edge.attach(client, "c", members=500)
    fetch, _ = asked(edge)
    page(edge, fetch, [member(number) for number in range(1, 501)])
    edge.gets(client, action=13, channel="c", code=50004)
    edge.gets_nothing(client)
    edge.sends(client, action=10, channel="c")  # there is room now: it is tried again
    edge.gets(client, action=11)
    fetch, _ = asked(edge)
    page(edge, fetch, [member(number) for number in range(1, 51)])
    assert len(synced(edge, client)) == 50


# --- leaving ---------------------------------------------------------------------------------------------------------------------------


def entered(edge: Edge, client: Client, *names: str, channel: str = "c", offset: int = 51) -> Open:
    opening, _ = edge.attach(client, channel)
    enters(edge, client, 0, *[{"action": ENTER, "clientId": name} for name in names], channel=channel)
    (append,) = edge.take(Append)
    edge.core(edge.change(opening.req, offset, client.session, *append.presence, id=f"{client.session}:0"))
    edge.appended(append, offset)
    client.inbox.clear()
    return opening


def leaves(append: Append) -> list[str]:
    assert append.id.startswith("s:")
    assert not append.messages
    assert {entry.action for entry in append.presence} == {LEAVE}
    return sorted(entry.client_id for entry in append.presence)


def test_a_detach_makes_the_members_leave_even_when_the_link_is_lost(edge: Edge) -> None:
    client = edge.connect()
    entered(edge, client, "ann", "bob")
    enters(edge, client, 1, {"action": ENTER, "clientId": "cid"})  # not answered yet
    edge.take(Append)
    edge.sends(client, action=12, channel="c")
    edge.gets(client, action=13)
    (append,) = edge.take(Append)
    assert leaves(append) == ["ann", "bob", "cid"]
    edge.link_lost()
    link = edge.link_up()
    again = edge.take(Append, link=link)
    assert [each.id for each in again] == [f"c:{client.session}:1", append.id]
    edge.core(Unknown(again[1].req), link=link)
    edge.wait(2)
    (once_more,) = edge.take(Append, link=link)
    assert once_more.id == append.id
    assert not once_more.fresh
    edge.appended(once_more, 60, link=link)
    edge.wait(30)
    assert edge.take(Append, link=link) == []


def test_what_came_through_another_spelling_stays(edge: Edge) -> None:
    client = edge.connect()
    opening = entered(edge, client, "ann")
    edge.sends(client, action=10, channel="[?echo=false]c")
    edge.gets(client, action=11, flags=DEFAULT_MODES | HAS_PRESENCE)
    client.inbox.clear()
    enters(edge, client, 1, {"action": ENTER, "clientId": "bob"}, channel="[?echo=false]c")
    edge.core(edge.change(opening.req, 52, client.session, item(ENTER, "bob")))
    edge.take(Append)
    edge.sends(client, action=12, channel="c")
    assert leaves(edge.take(Append)[0]) == ["ann"]
    edge.sends(client, action=12, channel="[?echo=false]c")
    assert leaves(edge.take(Append)[0]) == ["ann", "bob"]  # ann's leave is not in the log yet: twice is once


def test_members_of_an_earlier_transport_leave_with_the_detach(edge: Edge) -> None:
    client = edge.connect()
    opening, _ = edge.attach(client, "c")
    edge.core(edge.change(opening.req, 51, client.session, item(ENTER, "ann")))
    edge.sends(client, action=12, channel="c")
    assert leaves(edge.take(Append)[0]) == ["ann"]


def test_the_end_of_a_connection_is_the_cores_business(edge: Edge) -> None:
    dropped, closed = edge.connect(), edge.connect()
    entered(edge, dropped, "ann")
    entered(edge, closed, "bob", channel="d")
    edge.lose(dropped)
    edge.sends(closed, action=7)
    assert [frame.closed for frame in edge.take(Depart)] == [False, True]
    assert edge.take(Append) == []


def test_modes_without_presence_make_the_members_leave(edge: Edge) -> None:
    client = edge.connect()
    entered(edge, client, "ann")
    edge.sends(client, action=10, channel="c", flags=int(Mode.SUBSCRIBE | Mode.PRESENCE_SUBSCRIBE))
    assert leaves(edge.take(Append)[0]) == ["ann"]


@pytest.mark.parametrize("capability", [{"c": ["subscribe"]}, {"other": ["*"]}])
def test_a_lost_capability_makes_the_members_leave(edge: Edge, capability: dict[str, list[str]]) -> None:
    client = edge.connect()
    entered(edge, client, "ann")
    edge.sends(client, action=17, auth={"accessToken": "a.b.c"})
    (admit,) = edge.take(Admit)
    edge.core(edge.admitted(admit.req, client.session, capability=capability))
    assert leaves(edge.take(Append)[0]) == ["ann"]


def test_a_leave_that_is_refused_for_now_is_tried_again_and_not_for_ever(edge: Edge) -> None:
    client = edge.connect()
    entered(edge, client, "ann")
    edge.sends(client, action=12, channel="c")
    tries = 0
    while appends := edge.take(Append):
        tries += 1
        edge.refused(appends[0].req, 50003)
        edge.wait(1.5)
    assert 30 < tries < 62


def test_a_leave_that_comes_late_spares_those_who_have_entered_again(edge: Edge) -> None:
    client = edge.connect()
    entered(edge, client, "ann", "bob")
    edge.sends(client, action=12, channel="c")
    edge.refused(edge.take(Append)[0].req, 50003)
    edge.sends(client, action=10, channel="c")
    enters(edge, client, 1, {"action": ENTER, "clientId": "ann"})
    edge.appended(edge.take(Append)[0], 60)
    edge.wait(1.5)
    assert leaves(edge.take(Append)[0]) == ["bob"]


def test_who_leaves_and_enters_in_one_breath_leaves_with_the_detach(edge: Edge) -> None:
    """Without a right to read nothing but the answers tells who is there."""
    client = edge.connect(capability={"c": ["presence"]})
    edge.sends(client, action=10, channel="c")
    for serial, action in enumerate((ENTER, LEAVE, ENTER)):
        enters(edge, client, serial, {"action": action, "clientId": "ann"})
    for offset, append in enumerate(edge.take(Append)):
        edge.appended(append, 51 + offset)
    assert [message["presence"][0]["action"] for message in client.inbox if message["action"] == 14] == [ENTER, LEAVE, ENTER]
    edge.sends(client, action=12, channel="c")
    assert leaves(edge.take(Append)[0]) == ["ann"]


def test_a_connection_believed_gone_that_is_here_is_told_to_enter_again(edge: Edge) -> None:
    client, other = edge.connect(), edge.connect()
    opening = entered(edge, client, "ann")
    edge.sends(other, action=10, channel="c")
    edge.gets(other, action=11)
    edge.gets(other, action=16)
    edge.core(edge.change(opening.req, 60, client.session, item(LEAVE, "ann"), id="random:0", cause=55))
    edge.gets(client, action=13, channel="c", code=91007)
    edge.gets_nothing(client)
    told = edge.gets(other, action=14, id="random:0", connectionId=client.session)
    assert told["presence"][0] == {"action": LEAVE, "id": "random:0:0", "clientId": "ann"}
    assert edge.take(Append) == []
    edge.sends(client, action=10, channel="c")
    edge.gets(client, action=11, flags=DEFAULT_MODES)


def test_remain_present_for_reaches_the_core(edge: Edge) -> None:
    for text, expected in (("5000", 5_000), ("10", 1_000), ("", None)):
        edge.open(f"key=app.key:secret&v=6&remainPresentFor={text}")
        assert edge.take(Admit)[0].remain_present_ms == expected
    client = edge.open("key=app.key:secret&v=6&remainPresentFor=soon")
    edge.gets(client, action=9, code=40003)


# --- REST ------------------------------------------------------------------------------------------------------------------------------


def admit(edge: Edge, capability: dict[str, list[str]] | None = None) -> None:
    (frame,) = edge.take(Admit)
    edge.core(edge.admitted(frame.req, "rest000001", capability=capability))


def test_the_set_over_rest_in_pages(edge: Edge) -> None:
    call = edge.asks("GET", "/channels/c%2Fd/presence", query="limit=600&clientId=a%2Cb")
    admit(edge)
    fetch, read = asked(edge)
    assert (read.channel, read.limit, read.after, read.fresh, read.client_id) == ("c/d", 600, 0, True, "a,b")
    page(edge, fetch, [member(number, data=b"\1", encoding="x") for number in range(1, 501)], 500)
    fetch, read = asked(edge)
    assert (read.limit, read.after) == (100, 500)
    page(edge, fetch, [member(number) for number in range(501, 601)], 600)
    status, body, headers = edge.answer(call)
    assert status == 200
    assert len(body) == 600
    assert body[0] == {
        "action": PRESENT,
        "id": "elsewhere0:1:0",
        "clientId": "m1",
        "connectionId": "elsewhere0",
        "timestamp": 1_700_000_000_000,
        "data": "AQ==",
        "encoding": "x/base64",
    }
    assert headers["link"] == '<./presence?limit=600&clientId=a%2Cb&cursor=600>; rel="next"'


def test_an_empty_set_over_rest(edge: Edge) -> None:
    call = edge.asks("GET", "/channels/c/presence", headers={"accept": "application/x-msgpack"})
    admit(edge, {"c": ["presence"]})
    fetch, _ = asked(edge)
    page(edge, fetch, [])
    status, body, headers = edge.answer(call)
    assert (status, body) == (200, [])
    assert headers["link"] == '<./presence?limit=100>; rel="current"'


@pytest.mark.parametrize(
    ("path", "capability", "query", "code"),
    [
        ("/channels/c/presence", {"c": ["publish", "history"]}, "", 40160),
        ("/channels/c/presence/history", {"c": ["presence", "subscribe"]}, "", 40160),
        ("/channels/c/presence", {"*": ["*"]}, "limit=1001", 40003),
        ("/channels/c/presence", {"*": ["*"]}, "limit=0", 40003),
        ("/channels/c/presence", {"*": ["*"]}, "cursor=x", 40011),
        ("/channels//presence", {"*": ["*"]}, "", 40010),
    ],
)
def test_what_rest_refuses(edge: Edge, path: str, capability: dict[str, list[str]], query: str, code: int) -> None:
    call = edge.asks("GET", path, query=query)
    admit(edge, capability)
    status, body, _ = edge.answer(call)
    assert (status, body["error"]["code"]) == (body["error"]["statusCode"], code)


def test_presence_history_shows_every_change(edge: Edge) -> None:
    call = edge.asks("GET", "/channels/c/presence/history", query="direction=forwards&limit=3")
    admit(edge)
    (fetch,) = edge.take(Fetch)
    read = calls.decode(fetch.what, fetch.body)
    assert isinstance(read, calls.History)
    assert (read.presence, read.limit, read.backwards) == (True, 3, False)
    first = edge.change(0, 51, "elsewhere0", item(ENTER, "ann", data=b"\1", encoding="cipher"), item(ENTER, "bob"))
    second = edge.change(0, 52, "elsewhere0", item(LEAVE, "ann"), id="random:0", cause=1)
    past = calls.Past(edge.serial("c", 52), [calls.Item(51, 0, 1, first.body), calls.Item(52, 0, 0, second.body)], None)
    edge.core(Page(fetch.req, 200, calls.encode_past(past)))
    status, body, headers = edge.answer(call)
    assert status == 200
    assert [(entry["action"], entry["clientId"], entry["id"]) for entry in body] == [
        (ENTER, "ann", "elsewhere0:51:0"),
        (ENTER, "bob", "elsewhere0:51:1"),
        (LEAVE, "ann", "random:0:0"),
    ]
    assert body[0]["data"] == "AQ=="
    assert body[0]["encoding"] == "cipher/base64"
    assert {entry["connectionId"] for entry in body} == {"elsewhere0"}
    assert headers["link"].startswith("<./history?")


# --- any order of things ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(40))
def test_a_client_that_follows_the_rules_ends_with_the_set_of_the_log(seed: int) -> None:
    """A set under change, an edge that loads it, loses its link and syncs its client at any moment."""
    chance = random.Random(seed)
    edge = Edge(limits=EdgeLimits(sync_page_members=3, sync_window_bytes=200, members_page=12))
    edge.slow = True
    client = edge.connect()
    log: dict[int, tuple[str, PresenceItem]] = {}
    serials = itertools.count(1)
    names = [f"n{number:02d}" for number in range(24)]

    def at(offset: int) -> dict[str, tuple[int, PresenceItem]]:
        found: dict[str, tuple[int, PresenceItem]] = {}
        for place, (_, entry) in sorted(log.items()):
            if place <= offset:
                if entry.action == LEAVE:
                    found.pop(entry.client_id, None)
                else:
                    found[entry.client_id] = (place, entry)
        return found

    def grow() -> None:
        offset = 51 + len(log)
        action = chance.choice([ENTER, LEAVE, UPDATE])
        log[offset] = (f"elsewhere0:{next(serials)}", item(action, chance.choice(names), data=str(offset)))

    ready: list[tuple[int, Page]] = []

    def serve() -> None:
        """Pages as of where the core is now; they arrive later. Numbers are places in the order of entering: here, of names."""
        for fetch in edge.take(Fetch, link=link):
            call = calls.decode(fetch.what, fetch.body)
            assert isinstance(call, calls.Members)
            whole = [
                MemberItem(names.index(name) + 1, "elsewhere0", name, f"{log[place][0]}:0", 1, place, entry.data)
                for name, (place, entry) in sorted(at(core_at).items())
                if names.index(name) + 1 > call.after
            ]
            piece = whole[: call.limit]
            body = MemberPage(edge.serial("c", core_at), piece, piece[-1].number if len(piece) < len(whole) else None)
            ready.append((link, Page(fetch.req, 200, calls.encode_members(body))))

    def arrive() -> None:
        for on, frame in ready:
            if on == link:
                edge.core(frame, link=link)
        ready.clear()

    for _ in range(40):
        grow()
    core_at = sent = 51 + len(log) - 1
    edge.sends(client, action=10, channel="c")
    opening = edge.take(Open)[-1]
    ref, link = opening.req, 1
    edge.core(Opened(ref, edge.serial("c", sent), members=len(at(sent))))
    for step in range(80):
        match chance.randrange(8):
            case 0 | 1:
                grow()
                core_at = 51 + len(log) - 1
            case 2 | 7 if sent < core_at:
                sent += 1
                publish_id, entry = log[sent]
                edge.core(edge.change(ref, sent, "elsewhere0", entry, id=publish_id), link=link)
            case 3:
                serve()
            case 4:
                arrive()
            case 5:
                edge.drain()
            case 6 if step % 5 == 0:
                edge.link_lost(link)
                link = edge.link_up()
                ref = edge.take(Open, link=link)[-1].req
                edge.core(Opened(ref, edge.serial("c", sent), members=len(at(sent))), link=link)
    while sent < core_at:
        sent += 1
        publish_id, entry = log[sent]
        edge.core(edge.change(ref, sent, "elsewhere0", entry, id=publish_id), link=link)
    edge.slow = False
    edge.drain()
    for _ in range(10):
        arrive()
        serve()
        edge.wait(2)
    assert follow(client.inbox) == {name: entry.data for name, (_, entry) in at(core_at).items()}


def follow(inbox: list[dict[str, Any]]) -> dict[str, Any]:
    """What a client of the specification (RTP2, RTP18, RTP19) knows after these messages."""
    known: dict[str, tuple[int, Any]] = {}
    gone: dict[str, int] = {}
    residual: set[str] | None = None
    sync = ""
    for message in inbox:
        if message["action"] == 11 and message["flags"] & HAS_PRESENCE:
            residual = set(known)
        if message["action"] == 16:
            sync_id, _, cursor = message["channelSerial"].partition(":")
            if sync_id != sync or residual is None:
                sync, residual = sync_id, set(known)
                gone.clear()
        for entry in message.get("presence", ()):
            name, number = entry["clientId"], int(entry["id"].split(":")[1])
            if number <= max(known.get(name, (0, None))[0], gone.get(name, 0)):
                continue
            if residual is not None:
                residual.discard(name)
            if entry["action"] == LEAVE:
                known.pop(name, None)
                if residual is not None:
                    gone[name] = number
            else:
                known[name] = (number, entry.get("data"))
        if message["action"] == 16:
            for entry in message["presence"]:
                if residual is not None:
                    residual.discard(entry["clientId"])
            if not cursor:
                for name in residual or ():
                    known.pop(name, None)
                residual = None
                gone.clear()
    return {name: data for name, (_, data) in known.items()}


def test_wire_forms_are_what_both_formats_need() -> None:
    """A page is encoded once and put into frames as it is."""
    members = [member(1, data="d")]
    for wire, decode in ((JSON, msgspec.json.decode), (MSGPACK, msgspec.msgpack.decode)):
        frame = wire.sync("c", "a:", wire.members(members))  # type: ignore[arg-type]
        assert decode(frame[2 if len(frame) < 128 else 4 :])["presence"][0]["clientId"] == "m1"


def test_an_attach_waits_until_the_core_has_sent_what_was_acknowledged_before(edge: Edge) -> None:
    first = edge.connect()
    edge.attach(first, "c", head=50)
    edge.behind = True
    second, third = edge.connect(), edge.connect()
    for client in (second, third):
        edge.sends(client, action=10, channel="c")
    edge.gets_nothing(second, third)
    (open_,) = edge.node._desk.hub.channels.values()
    edge.core(edge.change(open_.ref, 51, "x", PresenceItem(action=2, client_id="ann")))
    edge.reach()
    assert edge.gets(second, action=11)["flags"] & 1, "the member that entered meanwhile"
    assert [item["clientId"] for item in edge.gets(second, action=16)["presence"]] == ["ann"]
    edge.gets_nothing(third)
    edge.reach()
    assert edge.gets(third, action=11)["flags"] & 1


def test_who_waits_for_a_core_that_is_lost_attaches_through_the_next(edge: Edge) -> None:
    first = edge.connect()
    edge.attach(first, "c", head=50)
    edge.behind = True
    second = edge.connect()
    edge.sends(second, action=10, channel="c")
    edge.link_lost()
    edge.behind = False
    link = edge.link_up()
    (again,) = edge.take(Open, link=link)
    edge.core(Opened(again.req, edge.serial("c", 50)), link=link)
    edge.gets(second, action=11)


def test_what_is_published_right_after_an_attach_is_not_taken_for_what_was_there_before(edge: Edge) -> None:
    first, second = edge.connect(), edge.connect()
    edge.sends(first, action=10, channel="c")
    (opening,) = edge.take(Open)
    edge.core(edge.record(opening.req, 51))
    edge.core(Opened(opening.req, edge.serial("c", 50)))
    edge.gets(first, action=11, channelSerial=edge.serial("c", 50))
    edge.gets(first, action=15, channelSerial=edge.serial("c", 51))
    edge.behind = True
    edge.sends(second, action=10, channel="c")
    edge.core(edge.record(opening.req, 52))
    edge.gets(first, action=15, channelSerial=edge.serial("c", 52))
    edge.gets_nothing(second)
    edge.behind = False
    edge.reach()
    edge.gets(second, action=11, channelSerial=edge.serial("c", 51))
    edge.gets(second, action=15, channelSerial=edge.serial("c", 52))
    edge.core(edge.record(opening.req, 53))
    for client in (first, second):
        edge.gets(client, action=15, channelSerial=edge.serial("c", 53))

"""Attaching, receiving, detaching. Specification RTL4, RTL5, RTL7, RTL17; Ably protocol docs, 3 and 4.4."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.effects import Broadcast
from relay.link.frames import Admit, Append, Depart, Lost, Open, Opened, Present, Shut
from relay.model.errors import ErrorInfo
from relay.model.limits import EdgeLimits
from relay.model.message import Message
from tests.unit.edge.playbook import Edge

DEFAULT = 65536 | 131072 | 262144 | 524288 | 2097152


def test_rtl4c_attached_carries_head_and_the_granted_modes(edge: Edge) -> None:
    client = edge.connect()
    opening, attached = edge.attach(client, "chat:lobby", head=7)
    assert (opening.app, opening.channel, opening.witness, opening.after) == ("app", "chat:lobby", client.session, None)
    assert attached == {"action": 11, "channel": "chat:lobby", "channelSerial": edge.serial("chat:lobby", 7), "flags": DEFAULT}


@pytest.mark.parametrize(
    ("fields", "capability", "granted"),
    [
        ({}, ["subscribe"], 262144 | 524288),
        ({}, ["publish"], 131072),
        ({}, ["presence"], 65536),
        ({}, ["publish", "subscribe"], 131072 | 262144 | 524288),
        ({"flags": 131072}, ["*"], 131072),
        ({"flags": 131072, "params": {"modes": "subscribe"}}, ["*"], 262144),
        ({"params": {"modes": "annotation_subscribe,object_publish"}}, ["*"], 4194304 | 33554432),
        ({"flags": 32}, ["*"], DEFAULT),
    ],
)
def test_3_3_modes_come_from_params_then_flags_then_the_default(edge: Edge, fields: Any, capability: list[str], granted: int) -> None:
    client = edge.connect(capability={"c": capability})
    edge.sends(client, action=10, channel="c", **fields)
    for opening in edge.take(Open):
        edge.core(Opened(opening.req, edge.serial("c", 7)))
    edge.gets(client, action=11, flags=granted)


def test_3_3_recognised_params_are_repeated_unchanged_and_others_vanish(edge: Edge) -> None:
    client = edge.connect()
    params = {"modes": "subscribe", "delta": "vcdiff", "agent": "x/1", "whatever": "1"}
    _, attached = edge.attach(client, "c", params=params)
    assert attached["params"] == {"modes": "subscribe", "delta": "vcdiff"}


@pytest.mark.parametrize("format_", ["json", "msgpack"])
def test_params_that_an_application_gave_as_numbers_are_as_good_as_text(edge: Edge, format_: str) -> None:
    client = edge.connect(f"key=a.b:c&v=6&format={format_}")
    edge.sends(client, action=10, channel="c", params={"rewindLimit": 5, "echo": False, "delta": None})
    for opening in edge.take(Open):
        edge.core(Opened(opening.req, edge.serial("c", 7)))
    edge.gets(client, action=11, params={"rewindLimit": "5", "echo": "false"})


@pytest.mark.parametrize(
    ("channel", "capability", "fields", "code"),
    [
        ("", {"*": ["*"]}, {}, 40010),
        (":hell", {"*": ["*"]}, {}, 40010),
        ("[nope]x", {"*": ["*"]}, {}, 40010),
        ("a\nb", {"*": ["*"]}, {}, 40010),
        ("c", {"d": ["*"]}, {}, 40160),
        ("c", {"c": ["history"]}, {}, 40160),
        ("c", {"c": ["publish"]}, {"flags": 262144}, 40160),
        ("c", {"*": ["*"]}, {"params": {"rewind": "soon"}}, 40003),
        ("c", {"*": ["*"]}, {"params": {"rewind": -1}}, 40003),
        ("c", {"*": ["*"]}, {"params": {"rewind": 1.5}}, 40003),
        ("c", {"*": ["*"]}, {"params": {"rewind": True}}, 40003),
        ("c", {"*": ["*"]}, {"params": {"modes": ["subscribe"]}}, 40003),
        ("c", {"*": ["*"]}, {"params": 7}, 40003),
    ],
)
def test_rtl4e_a_refused_attach_fails_the_channel_and_nothing_else(
    edge: Edge, channel: str, capability: dict[str, list[str]], fields: Any, code: int
) -> None:
    client = edge.connect(capability=capability)
    for _ in range(2):
        edge.sends(client, action=10, channel=channel, **fields)
        edge.gets(client, action=9, channel=channel, code=code)
    edge.core_gets_nothing()
    assert client.closed is None


def test_90010_the_201st_channel_is_refused() -> None:
    edge = Edge(limits=EdgeLimits(channels_per_connection=2))
    client = edge.connect()
    edge.attach(client, "a")
    edge.attach(client, "b")
    edge.sends(client, action=10, channel="c")
    edge.gets(client, action=9, channel="c", code=90010)


def test_rtl17_nothing_is_sent_for_a_channel_before_its_attached(edge: Edge) -> None:
    client = edge.connect()
    edge.sends(client, action=10, channel="c")
    (opening,) = edge.take(Open)
    edge.core(edge.record(opening.req, 51))
    edge.gets_nothing(client)
    edge.core(Opened(opening.req, edge.serial("c", 50)))
    edge.gets(client, action=11)


def test_a_channel_is_opened_once_however_many_attach_and_shut_some_time_after_the_last(edge: Edge) -> None:
    first, second = edge.connect(), edge.connect()
    opening, _ = edge.attach(first, "c")
    edge.sends(second, action=10, channel="c")
    edge.gets(second, action=11, channelSerial=edge.serial("c", 50))
    assert edge.take(Open) == []
    edge.sends(first, action=12, channel="c")
    edge.gets(first, action=13, channel="c")
    edge.wait(10)
    assert edge.take(Shut) == []
    edge.sends(second, action=12, channel="c")
    edge.wait(4)
    assert edge.take(Shut) == []
    edge.wait(2)
    assert edge.take(Shut) == [Shut(opening.req)]


def test_rtl5_detach_is_answered_also_where_nothing_was_attached(edge: Edge) -> None:
    client = edge.connect()
    edge.sends(client, action=12, channel="never")
    assert edge.gets(client) == {"action": 13, "channel": "never"}


def test_3_6_nothing_follows_a_detached(edge: Edge) -> None:
    client = edge.connect()
    opening, _ = edge.attach(client, "c")
    edge.sends(client, action=12, channel="c")
    edge.gets(client, action=13)
    edge.core(edge.record(opening.req, 51))
    edge.gets_nothing(client)


def test_rtl16a_a_repeated_attach_changes_modes_and_loses_nothing(edge: Edge) -> None:
    client = edge.connect()
    opening, _ = edge.attach(client, "c")
    edge.sends(client, action=10, channel="c", flags=131072)
    edge.gets(client, action=11, flags=131072 | 4)
    edge.core(edge.record(opening.req, 51))
    edge.gets_nothing(client)
    edge.sends(client, action=10, channel="c", flags=262144)
    edge.gets(client, action=11, flags=262144 | 4, channelSerial=edge.serial("c", 51))
    edge.core(edge.record(opening.req, 52))
    edge.gets(client, action=15)


def test_3_3_each_attach_gets_its_own_attached(edge: Edge) -> None:
    client = edge.connect()
    edge.sends(client, action=10, channel="c")
    edge.sends(client, action=10, channel="c", params={"modes": "subscribe"})
    (opening,) = edge.take(Open)
    edge.core(Opened(opening.req, edge.serial("c", 1)))
    edge.gets(client, action=11, flags=262144)
    edge.gets(client, action=11, flags=262144 | 4)
    edge.gets_nothing(client)


def test_a_core_that_does_not_answer_detaches_so_that_the_client_tries_again(edge: Edge) -> None:
    client = edge.connect("key=a.b:c&v=6&heartbeats=false")
    edge.sends(client, action=10, channel="c")
    edge.wait(9)
    edge.gets(client, action=13, channel="c", code=50003)


def test_the_cores_refusal_of_a_reader_fails_its_channel_and_the_next_reader_is_asked_for(edge: Edge) -> None:
    first, second = edge.connect(), edge.connect()
    edge.sends(first, action=10, channel="c")
    edge.sends(second, action=10, channel="c")
    (opening,) = edge.take(Open)
    edge.refused(opening.req, 40160)
    edge.gets(first, action=9, channel="c", code=40160)
    (opening,) = edge.take(Open)
    assert opening.witness == second.session
    edge.core(Opened(opening.req, edge.serial("c", 1)))
    edge.gets(second, action=11)


def test_a_reader_who_is_gone_by_the_time_of_its_refusal_is_refused_alone(edge: Edge) -> None:
    """Such as one that was resumed elsewhere."""
    first, second = edge.connect(), edge.connect()
    edge.sends(first, action=10, channel="c")
    edge.sends(second, action=10, channel="c")
    (opening,) = edge.take(Open)
    edge.lose(first)
    edge.refused(opening.req, 40160)
    (again,) = edge.take(Open)
    assert again.witness == second.session
    edge.core(Opened(again.req, edge.serial("c", 1)))
    edge.gets(second, action=11)


def test_a_passing_refusal_of_an_open_is_tried_again(edge: Edge) -> None:
    client = edge.connect()
    edge.sends(client, action=10, channel="c")
    edge.refused(edge.take(Open)[0].req, 50320)
    edge.gets_nothing(client)
    edge.wait(1.5)
    edge.core(Opened(edge.take(Open)[0].req, edge.serial("c", 1)))
    edge.gets(client, action=11)


# --- delivery ------------------------------------------------------------------------------------------------------------------------


def test_rsl4_rtl7_a_record_arrives_with_ids_serials_and_without_absent_fields(edge: Edge) -> None:
    client = edge.connect()
    opening, _ = edge.attach(client, "c")
    edge.core(
        edge.record(opening.req, 51, Message(name="greet", data="", client_id="bob"), Message(data="x"), connection="AAA", id="AAA:3")
    )
    serial = edge.serial("c", 51)
    assert edge.gets(client) == {
        "action": 15,
        "id": "AAA:3",
        "channel": "c",
        "channelSerial": serial,
        "connectionId": "AAA",
        "timestamp": edge.now_ms,
        "messages": [
            {"action": 0, "serial": f"{serial}:000", "name": "greet", "data": "", "clientId": "bob"},
            {"action": 0, "serial": f"{serial}:001", "data": "x"},
        ],
    }


def test_4_4_bytes_are_base64_for_json_and_bin_for_msgpack(edge: Edge) -> None:
    json, msgpack = edge.connect(), edge.connect("key=a.b:c&v=6&format=msgpack")
    opening, _ = edge.attach(json, "c")
    edge.sends(msgpack, action=10, channel="c")
    edge.gets(msgpack, action=11)
    edge.core(edge.record(opening.req, 51, Message(data=b"\x00\xff"), Message(data=b"x", encoding="utf-8/cipher+aes-128-cbc")))
    in_json, in_msgpack = edge.gets(json)["messages"], edge.gets(msgpack)["messages"]
    assert (in_json[0]["data"], in_json[0]["encoding"]) == (base64.b64encode(b"\x00\xff").decode(), "base64")
    assert in_json[1]["encoding"] == "utf-8/cipher+aes-128-cbc/base64"
    assert in_msgpack[0]["data"] == b"\x00\xff"
    assert "encoding" not in in_msgpack[0]
    assert (in_msgpack[1]["data"], in_msgpack[1]["encoding"]) == (b"x", "utf-8/cipher+aes-128-cbc")


@given(data=st.one_of(st.text(), st.binary()), encoding=st.one_of(st.none(), st.sampled_from(["json", "utf-8", "nonsense", "json/utf-8"])))
def test_4_4_what_is_published_in_either_format_comes_back_the_same_in_either(data: str | bytes, encoding: str | None) -> None:
    """Publish in both formats, deliver in both: four ways, the same bytes."""
    edge = Edge()
    clients = {"json": edge.connect(), "msgpack": edge.connect("key=a.b:c&v=6&format=msgpack")}
    opening, _ = edge.attach(clients["json"], "c")
    edge.sends(clients["msgpack"], action=10, channel="c")
    edge.gets(clients["msgpack"], action=11)
    for number, (name, client) in enumerate(clients.items()):
        message: dict[str, Any] = {"data": data}
        if encoding:
            message["encoding"] = encoding
        if name == "json" and isinstance(data, bytes):
            message = {"data": base64.b64encode(data).decode(), "encoding": f"{encoding}/base64" if encoding else "base64"}
        edge.sends(client, action=15, channel="c", msgSerial=0, messages=[message])
        (append,) = edge.take(Append)
        edge.core(edge.record(opening.req, 60 + number, *append.messages))
        for receiver in clients.values():
            (got,) = edge.gets(receiver, action=15)["messages"]
            assert _decoded(got) == (data, encoding)


def _decoded(message: dict[str, Any]) -> tuple[Any, str | None]:
    data, encoding = message.get("data"), message.get("encoding")
    if encoding and encoding.split("/")[-1] == "base64":
        data, encoding = base64.b64decode(data), encoding[: -len("/base64")] or None
    return data, encoding


def test_one_effect_and_one_encoding_reach_all_subscribers_of_a_format(edge: Edge) -> None:
    clients = [edge.connect() for _ in range(5)]
    opening, _ = edge.attach(clients[0], "c")
    for client in clients[1:]:
        edge.sends(client, action=10, channel="c")
    effects = edge.core(edge.record(opening.req, 51), edge.record(opening.req, 52))
    (broadcast,) = effects
    assert isinstance(broadcast, Broadcast)
    assert len(broadcast.clients) == 5
    for client in clients[1:]:
        edge.gets(client, action=11)
    for client in clients:
        edge.gets(client, channelSerial=edge.serial("c", 51))
        edge.gets(client, channelSerial=edge.serial("c", 52))


def test_two_spellings_of_a_channel_are_two_attachments_of_one_channel(edge: Edge) -> None:
    client = edge.connect()
    opening, _ = edge.attach(client, "c")
    edge.sends(client, action=10, channel="[?delta=vcdiff]c")
    edge.gets(client, action=11, channel="[?delta=vcdiff]c", params={"delta": "vcdiff"})
    edge.core(edge.record(opening.req, 51))
    assert {edge.gets(client)["channel"] for _ in range(2)} == {"c", "[?delta=vcdiff]c"}


def test_rtl7f_echo_false_keeps_a_connections_own_messages_back(edge: Edge) -> None:
    quiet, other = edge.connect("key=a.b:c&v=6&echo=false"), edge.connect()
    opening, _ = edge.attach(quiet, "c")
    edge.sends(other, action=10, channel="c")
    edge.gets(other, action=11)
    edge.core(edge.record(opening.req, 51, connection=quiet.session), edge.record(opening.req, 52, connection=other.session))
    edge.gets(quiet, channelSerial=edge.serial("c", 52))
    edge.gets(other, channelSerial=edge.serial("c", 51))
    edge.gets(other, channelSerial=edge.serial("c", 52))


def test_echo_false_may_be_asked_for_one_channel(edge: Edge) -> None:
    client = edge.connect()
    opening, _ = edge.attach(client, "c", params={"echo": "false"})
    edge.core(edge.record(opening.req, 51, connection=client.session))
    edge.gets_nothing(client)


def test_an_attachment_without_subscribe_receives_nothing(edge: Edge) -> None:
    client = edge.connect()
    opening, _ = edge.attach(client, "c", flags=131072)
    edge.core(edge.record(opening.req, 51))
    edge.gets_nothing(client)


def test_a_record_that_cannot_be_read_costs_nobody_anything(edge: Edge) -> None:
    client = edge.connect()
    opening, _ = edge.attach(client, "c")
    bad = edge.record(opening.req, 51)
    bad.body = b"\xc1"
    edge.core(bad, edge.record(opening.req, 52))
    edge.gets(client, channelSerial=edge.serial("c", 52))
    assert edge.node.stats.undecodable == 1


# --- continuity ----------------------------------------------------------------------------------------------------------------------


def test_3_5_an_attach_at_the_head_is_resumed(edge: Edge) -> None:
    client = edge.connect()
    _, attached = edge.attach(client, "c", channelSerial=edge.serial("c", 50))
    assert attached["flags"] == DEFAULT | 4
    assert edge.take(Open) == []


def test_3_5_what_was_missed_follows_attached_in_order_and_before_live(edge: Edge) -> None:
    client = edge.connect()
    edge.sends(client, action=10, channel="c", channelSerial=edge.serial("c", 40))
    (opening,) = edge.take(Open)
    edge.core(Opened(opening.req, edge.serial("c", 50)))
    (replay,) = edge.take(Open)
    assert (replay.after, replay.witness) == (edge.serial("c", 40), client.session)
    edge.core(edge.record(opening.req, 51))
    edge.core(edge.record(replay.req, 45), edge.record(replay.req, 48))
    edge.gets_nothing(client)
    edge.core(edge.record(replay.req, 51), Opened(replay.req, edge.serial("c", 50)))
    edge.gets(client, action=11, flags=DEFAULT | 4 | 2, channelSerial=edge.serial("c", 40))
    for offset in (45, 48, 51):
        edge.gets(client, action=15, channelSerial=edge.serial("c", offset))
    assert edge.take(Shut) == [Shut(replay.req)]
    edge.core(edge.record(opening.req, 52))
    edge.gets(client, action=15, channelSerial=edge.serial("c", 52))
    edge.gets_nothing(client)


def test_3_5_a_replay_ahead_of_the_channel_is_not_repeated(edge: Edge) -> None:
    client = edge.connect()
    edge.sends(client, action=10, channel="c", channelSerial=edge.serial("c", 40))
    (opening,) = edge.take(Open)
    edge.core(Opened(opening.req, edge.serial("c", 50)))
    (replay,) = edge.take(Open)
    edge.behind = True
    edge.core(edge.record(replay.req, 51), Opened(replay.req, edge.serial("c", 51)))
    edge.gets(client, action=11)
    edge.gets(client, channelSerial=edge.serial("c", 51))
    edge.core(edge.record(opening.req, 51), edge.record(opening.req, 52))
    edge.gets(client, channelSerial=edge.serial("c", 52))
    edge.gets_nothing(client)


def test_3_5_a_replay_ahead_of_a_channel_with_other_readers_is_not_repeated(edge: Edge) -> None:
    other, client = edge.connect(), edge.connect()
    opening, _ = edge.attach(other, "c", head=50)
    edge.sends(client, action=10, channel="c", channelSerial=edge.serial("c", 40))
    (replay,) = edge.take(Open)
    edge.behind = True
    edge.core(edge.record(replay.req, 51), edge.record(replay.req, 52), Opened(replay.req, edge.serial("c", 52)))
    edge.gets(client, action=11)
    for offset in (51, 52):
        edge.gets(client, channelSerial=edge.serial("c", offset))
    edge.core(*(edge.record(opening.req, offset) for offset in (51, 52, 53)))
    edge.gets(client, channelSerial=edge.serial("c", 53))
    edge.gets_nothing(client)
    for offset in (51, 52, 53):
        edge.gets(other, channelSerial=edge.serial("c", offset))


def test_rtl17_nothing_precedes_attached_when_a_replay_ends_among_live_records(edge: Edge) -> None:
    other, client = edge.connect(), edge.connect()
    opening, _ = edge.attach(other, "c", head=50)
    edge.sends(client, action=10, channel="c", channelSerial=edge.serial("c", 49))
    (replay,) = edge.take(Open)
    edge.core(edge.record(opening.req, 51), Opened(replay.req, edge.serial("c", 50)), edge.record(opening.req, 52))
    edge.gets(client, action=11)
    for offset in (51, 52):
        edge.gets(client, action=15, channelSerial=edge.serial("c", offset))
    edge.gets_nothing(client)


def test_3_5_a_gap_is_said(edge: Edge) -> None:
    client = edge.connect()
    edge.sends(client, action=10, channel="c", channelSerial=edge.serial("c", 40))
    edge.core(Opened(edge.take(Open)[0].req, edge.serial("c", 50)))
    (replay,) = edge.take(Open)
    edge.core(Opened(replay.req, edge.serial("c", 50), ErrorInfo.of(90003, "messages expired")))
    assert edge.gets(client, action=11, code=90003)["flags"] == DEFAULT


@pytest.mark.parametrize("serial", ["garbage", "zzzzzzzz-0000-0000000000000001"])
def test_3_5_a_position_of_another_stream_attaches_at_the_head(edge: Edge, serial: str) -> None:
    client = edge.connect()
    edge.sends(client, action=10, channel="c", channelSerial=serial)
    edge.core(Opened(edge.take(Open)[0].req, edge.serial("c", 50)))
    edge.gets(client, action=11, code=90005, channelSerial=edge.serial("c", 50))


def test_ephemeral_messages_are_delivered_live_and_not_replayed(edge: Edge) -> None:
    client = edge.connect()
    edge.sends(client, action=10, channel="c", channelSerial=edge.serial("c", 40))
    (opening,) = edge.take(Open)
    edge.core(Opened(opening.req, edge.serial("c", 50)))
    (replay,) = edge.take(Open)
    edge.core(edge.record(replay.req, 45, ephemeral=True), Opened(replay.req, edge.serial("c", 50)))
    edge.gets(client, action=11)
    edge.gets_nothing(client)
    edge.core(edge.record(opening.req, 51, ephemeral=True))
    edge.gets(client, action=15)


# --- witnesses -----------------------------------------------------------------------------------------------------------------------


def test_a_witness_that_departs_is_followed_by_another_reader(edge: Edge) -> None:
    first, second = edge.connect(), edge.connect()
    opening, _ = edge.attach(first, "c")
    edge.sends(second, action=10, channel="c")
    edge.gets(second, action=11)
    edge.lose(first)
    assert edge.take(Depart) == [Depart(first.session, False, 0)]
    assert edge.take(Shut) == []
    edge.core(Lost(opening.req, ErrorInfo.of(40160, "no witness")))
    edge.wait(1.5)
    (again,) = edge.take(Open)
    assert (again.witness, again.after) == (second.session, edge.serial("c", 50))
    edge.core(Opened(again.req, edge.serial("c", 50)), edge.record(again.req, 51))
    edge.gets(second, action=15, channelSerial=edge.serial("c", 51))


def test_the_last_reader_that_departs_takes_its_channel_along(edge: Edge) -> None:
    client = edge.connect()
    opening, _ = edge.attach(client, "c")
    edge.lose(client)
    assert [type(frame) for frame in edge.sent[1]] == [Shut, Depart]
    assert edge.take(Shut) == [Shut(opening.req)]
    assert edge.node.channels == 0


def test_grants_are_presented_only_where_they_are_used() -> None:
    edge = Edge(cores=2)
    client = edge.open()
    admitted_on = 1 if edge.sent[1] else 2
    (admit,) = edge.take(Admit, link=admitted_on)
    edge.core(edge.admitted(admit.req, "s000000001"), link=admitted_on)
    for name in "abcdefgh":
        edge.sends(client, action=10, channel=name)
    other = 3 - admitted_on
    assert edge.take(Present, link=admitted_on) == []
    assert len(edge.take(Present, link=other)) == 1
    assert edge.take(Open, link=1)
    assert edge.take(Open, link=2)


def test_channels_go_to_a_link_that_serves_their_partition() -> None:
    edge = Edge(cores=0)
    low, high = edge.link_up("low", (0, 1)), edge.link_up("high", (2, 3))
    client = edge.open()
    on = low if edge.sent[low] else high
    edge.core(edge.admitted(edge.take(Admit, link=on)[0].req, "s000000001"), link=on)
    for number in range(20):
        edge.sends(client, action=10, channel=f"c{number}")
    for link, served in ((low, "01"), (high, "23")):
        openings = edge.take(Open, link=link)
        assert openings
        assert all(edge.serial(opening.channel, 0).split("-")[1][-1] in served for opening in openings)


# --- what is left behind -----------------------------------------------------------------------------------------------------------------


def test_a_refused_replay_leaves_no_channel_open(edge: Edge) -> None:
    first, second = edge.connect(), edge.connect()
    opening, _ = edge.attach(first, "c")
    edge.sends(first, action=12, channel="c")
    edge.sends(second, action=10, channel="c", channelSerial=edge.serial("c", 40))
    (replay,) = edge.take(Open)
    edge.refused(replay.req, 50003)
    edge.gets(second, action=13, code=50003)
    edge.take(Shut)
    edge.wait(10)
    assert [shut.ref for shut in edge.take(Shut)] == [opening.req]


def test_nor_does_an_attach_that_has_waited_in_vain(edge: Edge) -> None:
    first, second = edge.connect(), edge.connect()
    opening, _ = edge.attach(first, "c")
    edge.sends(first, action=12, channel="c")
    edge.behind = True
    edge.sends(second, action=10, channel="c")
    edge.wait(9)
    edge.gets(second, action=13, code=50003)
    edge.wait(10)
    assert [shut.ref for shut in edge.take(Shut)] == [opening.req]


def test_a_channel_that_all_have_left_while_it_waited_to_be_opened_again_opens_for_the_next(edge: Edge) -> None:
    client = edge.connect()
    opening, _ = edge.attach(client, "c")
    edge.core(Lost(opening.req, ErrorInfo.of(50001, "lost")))
    edge.sends(client, action=12, channel="c")
    edge.gets(client, action=13)
    edge.wait(2)
    edge.attach(client, "c")


def test_a_witness_that_is_refused_before_it_has_caught_up_is_not_tried_again(edge: Edge) -> None:
    first, second = edge.connect(), edge.connect()
    opening, _ = edge.attach(first, "c")
    edge.sends(second, action=10, channel="c", channelSerial=edge.serial("c", 40))
    (replay,) = edge.take(Open)
    edge.behind = True
    edge.core(Opened(replay.req, edge.serial("c", 60)))
    edge.gets(second, action=11)
    edge.sends(first, action=12, channel="c")
    edge.core(Lost(opening.req, ErrorInfo.of(50001, "lost")))
    edge.wait(2)
    (again,) = edge.take(Open)
    edge.refused(again.req, 40160)
    edge.gets(second, action=9, code=40160)
    assert edge.take(Open) == []


def test_modes_that_change_among_records_cost_none_of_them(edge: Edge) -> None:
    client = edge.connect(capability={"c": ["subscribe", "publish"]})
    opening, _ = edge.attach(client, "c")
    edge.sends(client, action=17, auth={"accessToken": "a.b.c"})
    (admit,) = edge.take(Admit)
    rights = edge.admitted(admit.req, client.session, capability={"c": ["subscribe"]})
    edge.core(edge.record(opening.req, 51), rights, edge.record(opening.req, 52))
    told = [message["channelSerial"] for message in client.inbox if message["action"] == 15]
    assert told == [edge.serial("c", 51), edge.serial("c", 52)]

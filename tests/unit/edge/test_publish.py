"""Publishing: what is refused and how, the order of answers, ids. Specification RTN7, RTL6; Ably protocol docs, 2.4, 4.2 to 4.10."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from relay.link.frames import Append, Appended, Unknown
from relay.model.limits import EdgeLimits
from tests.unit.edge.playbook import Client, Edge


def publish(edge: Edge, client: Client, serial: int, channel: str = "c", **message: Any) -> None:
    edge.sends(client, action=15, channel=channel, msgSerial=serial, messages=[message or {"name": "m", "data": "d"}])


def test_rtn7a_a_publish_is_acknowledged_with_its_serials_once_it_is_durable(edge: Edge) -> None:
    client = edge.connect()
    edge.sends(client, action=15, channel="c", msgSerial=0, messages=[{"name": "a", "data": None}, {"data": "b"}])
    (append,) = edge.take(Append)
    assert (append.session, append.channel, append.id, append.fresh, append.ephemeral) == (
        client.session,
        "c",
        f"c:{client.session}:0",
        True,
        False,
    )
    assert [(message.name, message.data) for message in append.messages] == [("a", None), (None, "b")]
    edge.gets_nothing(client)
    serial = edge.appended(append, 7)
    assert edge.gets(client) == {"action": 1, "msgSerial": 0, "count": 1, "res": [{"serials": [f"{serial}:000", f"{serial}:001"]}]}


def test_rtn7_answers_leave_in_the_order_of_the_publishes(edge: Edge) -> None:
    client = edge.connect()
    for serial in range(4):
        publish(edge, client, serial)
    first, second, third, fourth = edge.take(Append)
    edge.appended(third, 12)
    edge.refused(second.req, 50003)
    edge.gets_nothing(client)
    edge.appended(first, 10)
    edge.gets(client, action=1, msgSerial=0, count=1)
    edge.gets(client, action=2, msgSerial=1, count=1, code=50003)
    edge.gets(client, action=1, msgSerial=2, count=1)
    edge.appended(fourth, 13)
    edge.gets(client, action=1, msgSerial=3, count=1)


def test_rtn7_neighbours_share_one_ack(edge: Edge) -> None:
    client = edge.connect()
    for serial in range(3):
        publish(edge, client, serial)
    edge.core(*[Appended(append.req, edge.serial("c", 10 + index)) for index, append in enumerate(edge.take(Append))])
    ack = edge.gets(client, action=1, msgSerial=0, count=3)
    assert [result["serials"] for result in ack["res"]] == [[f"{edge.serial('c', 10 + index)}:000"] for index in range(3)]


@pytest.mark.parametrize(
    ("message", "capability", "client_id", "code"),
    [
        ({"channel": "", "messages": [{}]}, ["*"], "*", 40010),
        ({"channel": ":hell", "messages": [{}]}, ["*"], "*", 40010),
        ({"messages": [{}]}, ["*"], "*", 40010),
        ({"channel": "[meta]x", "messages": [{}]}, ["*"], "*", 40160),
        ({"channel": "[filter=bmFtZQ==]x", "messages": [{}]}, ["*"], "*", 40010),
        ({"channel": "c", "messages": [{}]}, ["subscribe"], "*", 40160),
        ({"channel": "c", "messages": [{"clientId": "eve"}]}, ["*"], "bob", 40012),
        ({"channel": "c", "messages": [{"clientId": "eve"}]}, ["*"], None, 40012),
        ({"channel": "c", "messages": [{"clientId": "*"}]}, ["*"], "*", 40012),
        ({"channel": "c", "messages": [{"connectionId": "other"}]}, ["*"], "*", 40006),
        ({"channel": "c", "messages": [{"id": ""}]}, ["*"], "*", 40031),
        ({"channel": "c", "messages": [{"id": "a:0"}, {"id": "b:1"}]}, ["*"], "*", 40031),
        ({"channel": "c", "messages": [{"extras": {"nope": 1}}]}, ["*"], "*", 40032),
        ({"channel": "c", "messages": [{"data": True}]}, ["*"], "*", 40013),
        ({"channel": "c", "messages": [{"data": {"a": 1}}]}, ["*"], "*", 40013),
        ({"channel": "c", "messages": [{"name": 7}]}, ["*"], "*", 40000),
        ({"channel": "c", "messages": "text"}, ["*"], "*", 40000),
        ({"channel": "c", "messages": []}, ["*"], "*", 40000),
        ({"channel": "c"}, ["*"], "*", 40000),
        ({"channel": "c", "messages": [{}] * 1001}, ["*"], "*", 40034),
        ({"channel": "c", "messages": [{"data": "x" * 65537}]}, ["*"], "*", 40009),
        ({"channel": "c", "messages": [{"action": 1, "serial": "x"}]}, ["*"], "*", 93002),
        ({"channel": "c", "messages": [{}], "params": {"_forceNack": "true"}}, ["*"], "*", 40099),
    ],
)
def test_rtn7_a_refused_publish_is_nacked_and_the_core_hears_nothing(
    edge: Edge, message: dict[str, Any], capability: list[str], client_id: str | None, code: int
) -> None:
    client = edge.connect(capability={"*": capability}, client_id=client_id)
    edge.sends(client, action=15, msgSerial=0, **message)
    edge.gets(client, action=2, msgSerial=0, count=1, code=code)
    edge.core_gets_nothing()
    assert client.closed is None
    assert edge.node.unanswered == 0


def test_40165_a_channel_attached_without_publish_is_not_published_to(edge: Edge) -> None:
    client = edge.connect()
    edge.attach(client, "c", flags=262144)
    publish(edge, client, 0)
    edge.gets(client, action=2, code=40165)
    publish(edge, client, 1, "[?x=1]c")
    assert len(edge.take(Append)) == 1, "the other spelling is no attachment: only the capability counts"


def test_40009_the_bound_is_inclusive_and_counts_bytes(edge: Edge) -> None:
    client = edge.connect()
    publish(edge, client, 0, data="x" * 65536)
    assert len(edge.take(Append)) == 1
    publish(edge, client, 1, data="é" * 32768 + "x")
    assert edge.take(Append) == []


def test_rsa7_the_connections_identity_is_filled_in(edge: Edge) -> None:
    client = edge.connect(client_id="bob")
    publish(edge, client, 0, data="x")
    (append,) = edge.take(Append)
    assert append.messages[0].client_id == "bob"


def test_rtl6c_publishing_needs_and_makes_no_attachment(edge: Edge) -> None:
    client = edge.connect()
    publish(edge, client, 0)
    edge.appended(edge.take(Append)[0], 1)
    edge.gets(client, action=1)
    edge.core_gets_nothing()
    assert (edge.node.attachments, edge.node.channels) == (0, 0)


def test_rsl6_base64_from_json_is_stored_as_bytes(edge: Edge) -> None:
    client = edge.connect()
    publish(edge, client, 0, data=base64.b64encode(b"\x00\x01").decode(), encoding="utf-8/base64")
    (message,) = edge.take(Append)[0].messages
    assert (message.data, message.encoding) == (b"\x00\x01", "utf-8")


def test_rsl1k_ids_of_the_client_are_kept_apart_from_ids_of_connections(edge: Edge) -> None:
    client = edge.connect()
    publish(edge, client, 0, id="other-conn:5", data="x")
    (append,) = edge.take(Append)
    assert (append.id, append.fresh) == ("i:other-conn:5", False)


@pytest.mark.parametrize("message", [{"extras": {"ephemeral": True}}, {"data": "x"}])
def test_ephemeral_is_said_to_the_core(edge: Edge, message: dict[str, Any]) -> None:
    client = edge.connect()
    params = {} if "extras" in message else {"params": {"ephemeral": "true"}}
    edge.sends(client, action=15, channel="c", msgSerial=0, messages=[message], **params)
    assert edge.take(Append)[0].ephemeral


def test_rtn19a2_a_repeated_msg_serial_goes_out_under_the_same_id_and_not_as_fresh(edge: Edge) -> None:
    client = edge.connect()
    publish(edge, client, 0)
    edge.appended(edge.take(Append)[0], 7)
    first = edge.gets(client, action=1)
    publish(edge, client, 0)
    (append,) = edge.take(Append)
    assert (append.id, append.fresh) == (f"c:{client.session}:0", False)
    edge.appended(append, 7)
    assert edge.gets(client) == first
    publish(edge, client, 1)
    assert edge.take(Append)[0].fresh


def test_2_4_a_repetition_of_what_is_unanswered_is_answered_once(edge: Edge) -> None:
    client = edge.connect()
    publish(edge, client, 0)
    publish(edge, client, 0)
    (append,) = edge.take(Append)
    edge.appended(append, 7)
    edge.gets(client, action=1)
    edge.gets_nothing(client)


def test_nothing_on_a_resumed_connection_is_fresh(edge: Edge) -> None:
    edge.connect(session="s000000001")
    client = edge.connect("key=a.b:c&v=6&resume=s000000001!0.mac", session="s000000001")
    publish(edge, client, 41)
    (append,) = edge.take(Append)
    assert (append.id, append.fresh) == ("c:s000000001:41", False)
    edge.appended(append, 9)
    edge.gets(client, action=1, msgSerial=41)


def test_a_msg_serial_may_skip_ahead(edge: Edge) -> None:
    client = edge.connect()
    publish(edge, client, 5)
    publish(edge, client, 9)
    for append in edge.take(Append):
        edge.appended(append, 9)
    edge.gets(client, action=1, msgSerial=5, count=1)
    edge.gets(client, action=1, msgSerial=9, count=1)


def test_a_publish_of_unknown_fate_is_never_nacked_but_disconnects_after_a_while(edge: Edge) -> None:
    client = edge.connect()
    publish(edge, client, 0)
    publish(edge, client, 1)
    first, second = edge.take(Append)
    edge.core(Appended(first.req, edge.serial("c", 1)), Unknown(second.req))
    edge.gets(client, action=1, msgSerial=0)
    assert client.closed is None  # not at once, or every client would come back at once
    edge.wait(5.5)
    edge.gets(client, action=6, code=50003)
    assert client.closed == 1000


def test_what_may_be_sent_again_after_a_reconnect_is_never_nacked_for_want_of_room(edge: Edge) -> None:
    client = edge.connect("key=a.b:c&v=6&heartbeats=false&resume=some!key")
    publish(edge, client, 0)
    (append,) = edge.take(Append)
    assert not append.fresh
    edge.core(Unknown(append.req))
    edge.wait(5.5)
    edge.gets(client, action=6, code=50003)


def test_a_publish_unanswered_for_20_s_disconnects(edge: Edge) -> None:
    client = edge.connect("key=a.b:c&v=6&heartbeats=false")
    publish(edge, client, 0)
    edge.wait(19)
    assert client.closed is None
    edge.wait(1.5)
    edge.gets(client, action=6, code=50003)


@pytest.mark.parametrize("action", [19, 21])
def test_what_is_not_enabled_is_nacked_never_ignored(edge: Edge, action: int) -> None:
    client = edge.connect()
    edge.sends(client, action=action, channel="c", msgSerial=0, presence=[{"action": 2}])
    nack = edge.gets(client, action=2, msgSerial=0, count=1, code=40000)
    assert "not enabled" in nack["error"]["message"]
    assert client.closed is None


def test_42911_above_the_rate_publishes_are_nacked_and_far_above_it_the_connection_is_closed() -> None:
    edge = Edge(limits=EdgeLimits(inbound_burst=10, inbound_per_s=1))
    client = edge.connect()
    for serial in range(15):
        publish(edge, client, serial)
    assert len(edge.take(Append)) == 10
    for serial in range(15, 25):
        publish(edge, client, serial)
    edge.gets(client, action=9, code=42921)
    assert client.closed == 1000


def test_nacks_wait_their_turn(edge: Edge) -> None:
    client = edge.connect()
    publish(edge, client, 0)
    edge.sends(client, action=15, channel=":bad", msgSerial=1, messages=[{}])
    edge.gets_nothing(client)
    edge.appended(edge.take(Append)[0], 1)
    edge.gets(client, action=1, msgSerial=0)
    edge.gets(client, action=2, msgSerial=1)


def test_unanswered_publishes_of_one_connection_are_bounded() -> None:
    edge = Edge(limits=EdgeLimits(unanswered_bytes=1000))
    client = edge.connect()
    for serial in range(4):
        publish(edge, client, serial, data="x" * 300)
    appends = edge.take(Append)
    assert len(appends) == 2
    for append in appends:
        edge.appended(append, 1)
    edge.gets(client, action=1)
    edge.gets(client, action=1)
    edge.gets(client, action=2, msgSerial=2, code=42911)
    edge.gets(client, action=2, msgSerial=3, code=42911)
    publish(edge, client, 4, data="x" * 300)
    assert len(edge.take(Append)) == 1


def test_nothing_is_sent_on_behind_a_refusal_that_has_not_been_told() -> None:
    """Should the connection drop first, the refused one is sent again, and must not come after what its client sent later."""
    edge = Edge(limits=EdgeLimits(inbound_burst=2, inbound_per_s=1))
    client = edge.connect()
    for serial in range(3):
        publish(edge, client, serial)
    first, second = edge.take(Append)
    edge.wait(2)
    publish(edge, client, 3)
    assert edge.take(Append) == []
    edge.appended(first, 1)
    edge.appended(second, 2)
    edge.gets(client, action=1)
    edge.gets(client, action=1)
    edge.gets(client, action=2, msgSerial=2, code=42911)
    edge.gets(client, action=2, msgSerial=3, code=42911)
    edge.wait(2)
    publish(edge, client, 4)
    assert len(edge.take(Append)) == 1


def test_nothing_is_sent_on_behind_what_is_in_doubt(edge: Edge) -> None:
    client = edge.connect()
    publish(edge, client, 0)
    edge.core(Unknown(edge.take(Append)[0].req))
    publish(edge, client, 1)
    assert edge.take(Append) == []
    edge.wait(5.5)
    edge.gets(client, action=6, code=50003)


def test_unanswered_publishes_of_the_edge_are_bounded() -> None:
    edge = Edge(limits=EdgeLimits(total_unanswered_bytes=1000))
    for number in range(4):
        client = edge.connect()
        publish(edge, client, 0, data="x" * 300)
        if number >= 2:
            edge.gets(client, action=2, code=50003)


def test_a_publish_without_msg_serial_cannot_be_answered(edge: Edge) -> None:
    client = edge.connect()
    edge.sends(client, action=15, channel="c", messages=[{}])
    edge.gets(client, action=9, code=80013)


def test_what_was_published_before_a_lost_socket_stays_under_way(edge: Edge) -> None:
    client = edge.connect()
    publish(edge, client, 0)
    (append,) = edge.take(Append)
    edge.lose(client)
    edge.appended(append, 3)
    assert (edge.node.unanswered, edge.node.channels) == (0, 0)

"""An append, from the edge's frame to its answer: checked again, handed to Kafka once, answered with the first serial."""

from __future__ import annotations

import msgspec
import pytest

from core.effects import Produce
from core.events import EdgeLost, Overfull, Reported, Tailed
from relay.link.frames import Append, Appended, Depart, Refused, Unknown
from relay.model.channel import partition_of
from relay.model.limits import CoreLimits
from relay.model.message import Message, RecordBody
from tests.unit.core.dialogue import OTHER_EDGE, SECRET, STREAM, Dialogue, serial, token


@pytest.fixture
def core() -> Dialogue:
    core = Dialogue()
    core.edge_up()
    return core


def test_a_publish_becomes_one_record_and_its_answer_the_serial(core):
    session = core.admitted(token(**{"x-ably-clientId": "bob"})).session
    req = core.append(session, "chat:x", f"c:{session}:0", Message(name="n", data="hello"), Message(data=b"\0"))
    (produce,) = [effect for effect in core.effects if isinstance(effect, Produce)]
    assert produce.key == b"shop:chat:x"
    assert produce.partition == partition_of(b"shop:chat:x", STREAM.partitions)
    assert produce.id == f"c:{session}:0"
    body = msgspec.msgpack.decode(produce.value, type=RecordBody)
    assert (body.id, body.timestamp, body.connection_id) == (f"{session}:0", core.now_ms, session)
    assert [(m.name, m.data, m.client_id) for m in body.messages] == [("n", "hello", "bob"), (None, b"\0", "bob")]
    (record,) = core.kafka_writes()
    assert core.answer(req) == Appended(req, serial(record))


def test_an_id_that_may_repeat_waits_for_the_verdict_and_gets_the_first_serial(core):
    session = core.admitted().session
    first = core.append(session, "a", "i:order-7", Message(id="order-7", data="1"), fresh=False)
    again = core.append(session, "a", "i:order-7", Message(id="order-7", data="1"), fresh=True)  # an edge's word is not taken for it
    records = core.kafka_writes()
    assert len(records) == 2
    assert core.sent() == []
    core.happens(Tailed(records))
    assert core.answer(first) == Appended(first, serial(records[0]))
    assert core.answer(again) == Appended(again, serial(records[0]))
    assert core.node.duplicates == 1


def test_the_tail_may_be_faster_than_the_report(core):
    session = core.admitted().session
    reqs = [core.append(session, "a", "i:x", Message(id="x"), fresh=False) for _ in range(2)]
    produced = core.take(Produce)
    records = [core.record("a", one.value, one.id) for one in produced]
    core.happens(Tailed(records))
    for one, record in reversed(list(zip(produced, records, strict=True))):
        core.happens(Reported(one.ticket, one.partition, record.offset))
    assert [core.answer(req).serial for req in reqs] == [serial(records[0])] * 2


def test_fate_unknown_is_said_so_and_never_called_a_refusal(core):
    session = core.admitted().session
    req = core.append(session, "a")
    (produce,) = core.take(Produce)
    core.happens(Reported(produce.ticket, produce.partition, None))
    assert core.answer(req) == Unknown(req)


def test_what_was_never_handed_to_kafka_is_refused_to_an_http_request(core):
    session = core.admitted(realtime=False).session
    req = core.append(session, "a")
    (produce,) = core.take(Produce)
    core.happens(Overfull(produce.ticket, "budget"))
    answer = core.answer(req)
    assert isinstance(answer, Refused)
    assert answer.error.code == 50003
    assert core.counted("append.overfull") == 1


def test_nothing_of_a_connection_overtakes_what_was_not_taken_of_it(core):
    """It might not hear of a refusal, and then sends again: after what was taken meanwhile."""
    first = core.admitted()
    core.append(first.session, "a")
    (produce,) = core.take(Produce)
    core.happens(Overfull(produce.ticket, "budget"))
    core.append(first.session, "a")
    assert [type(frame) for frame in core.sent()] == [Unknown, Unknown]
    again = core.admitted(resume=first.key)
    assert again.session == first.session
    core.append(again.session, "a")
    assert len(core.take(Produce)) == 1


def test_while_kafka_is_away_nothing_is_refused_and_the_link_is_bounded():
    core = Dialogue(limits=CoreLimits(link_appends=5))
    core.edge_up()
    session = core.admitted(realtime=False).session
    for _ in range(8):
        core.append(session, "a")
    assert len(core.take(Produce)) == 5
    assert [frame.error.code for frame in core.sent()] == [50003] * 3
    core.tick(600)
    assert core.sent() == []


def test_what_may_repeat_an_earlier_send_is_never_refused_for_want_of_room_and_nothing_overtakes_it():
    core = Dialogue(limits=CoreLimits(link_appends=1))
    core.edge_up()
    session = core.admitted().session
    core.append(session, "a", f"c:{session}:0", fresh=False)
    (produced,) = core.take(Produce)
    core.append(session, "a", f"c:{session}:1", fresh=False)
    assert [type(frame) for frame in core.sent()] == [Unknown]
    core.happens(Reported(produced.ticket, produced.partition, None))
    core.append(session, "a", f"c:{session}:2", fresh=False)
    assert [type(frame) for frame in core.sent()] == [Unknown, Unknown]
    assert core.take(Produce) == []


def test_what_may_repeat_an_earlier_send_is_not_refused_for_rights_that_have_ended_since():
    """The edge sends it again after the loss of a core. The first copy may be in the log, and a NACK would be a lie."""
    core = Dialogue()
    core.edge_up()
    session = core.admitted(token(ttl_s=60)).session
    core.tick(70)
    for publish_id, fresh in ((f"c:{session}:0", True), (f"c:{session}:1", False)):
        core.append(session, "a", publish_id, fresh=fresh)
    assert [type(frame) for frame in core.sent()] == [Refused, Unknown]
    assert core.node.counters.total() == 2
    core.append("strangerrr", "a", "c:strangerrr:0", fresh=False)
    assert [type(frame) for frame in core.sent()] == [Unknown]
    # What it says of the message itself held for the first copy too.
    session = core.admitted(f"shop.chat:{SECRET}").session
    core.append(session, "news", f"c:{session}:0", fresh=False)
    assert [frame.error.code for frame in core.sent()] == [40160]


def test_bytes_in_flight_are_bounded_too():
    core = Dialogue(limits=CoreLimits(link_append_bytes=1000))
    core.edge_up()
    session = core.admitted(realtime=False).session
    for _ in range(5):
        core.append(session, "a", "", Message(data="x" * 600))
    assert len(core.kafka_writes()) == 2
    core.sent()
    core.append(session, "a", "", Message(data="x" * 600))
    assert len(core.kafka_writes()) == 1


def test_a_record_that_the_tail_does_not_show_in_time_has_an_unknown_fate(core):
    session = core.admitted().session
    req = core.append(session, "a", f"c:{session}:0", fresh=False)
    records = core.kafka_writes()
    core.tick(30)
    assert core.sent() == []
    core.tick(31)
    assert core.answer(req) == Unknown(req)
    core.happens(Tailed(records))
    assert core.sent() == []


def test_a_lost_edge_takes_its_questions_with_it_not_its_publishes(core):
    session = core.admitted().session
    core.append(session, "a", fresh=False)
    core.happens(EdgeLost(1, "reset"))
    core.kafka_round()
    assert core.sent() == []
    assert core.node.status()["appends"] == 0


@pytest.mark.parametrize(
    ("message", "code"),
    [
        (Message(data="x", client_id="eve"), 40012),
        (Message(data="x", connection_id="somebodyXX"), 40006),
        (Message(data="x" * 70_000), 40009),
        (Message(data=7), 40013),
        (Message(data="x", extras={"nonsense": 1}), 40032),
        (Message(data="x", extras={"privileged": {"skipRule": "*"}}), None),
        (Message(data="x", action=1, serial="s"), 93002),
        (Message(id="", data="x"), 40031),
    ],
)
def test_every_rule_of_a_publish_holds_again_at_the_core(core, message, code):
    session = core.admitted(token(**{"x-ably-clientId": "bob"})).session
    core.append(session, "a", f"c:{session}:0", message)
    assert len(core.take(Produce)) == (1 if code is None else 0)
    if code is not None:
        assert [frame.error.code for frame in core.sent()] == [code]
        assert core.counted(f"append.{code}") == 1


def test_privileged_extras_need_their_operation(core):
    session = core.admitted(f"shop.chat:{SECRET}").session
    core.append(session, "chat:x", "", Message(extras={"privileged": {"skipRule": "*"}}))
    assert [frame.error.code for frame in core.sent()] == [40160]


def test_server_set_fields_of_an_edge_are_not_believed(core):
    session = core.admitted().session
    core.append(session, "a", "", Message(data="x", timestamp=5, serial="s", version={"serial": "s"}, connection_id=session))
    (produce,) = core.take(Produce)
    (message,) = msgspec.msgpack.decode(produce.value, type=RecordBody).messages
    assert (message.timestamp, message.serial, message.version, message.connection_id) == (None, None, None, None)


@pytest.mark.parametrize(
    "publish_id", ["", "c:", "i:", "s:", "x", "m:topic:0:1", "c:other00000:0", "i:else", "s:" + "x" * 2000, "c:{}", "c:{}x:0"]
)
def test_ids_that_are_not_the_sessions_own(core, publish_id):
    session = core.admitted().session
    core.edge_sends(Append(77, session, "a", publish_id.replace("{}", session), False, [Message(id="mine", data="x")]))
    assert core.answer(77).error.code == 40031
    assert core.counted("append.bad_id") == 1


# --- REST


def test_a_rest_publish_has_no_connection(core):
    session = core.admitted(realtime=False).session
    core.append(session, "a")
    (produce,) = core.take(Produce)
    assert msgspec.msgpack.decode(produce.value, type=RecordBody).connection_id is None


def test_a_rest_publish_on_behalf_of_a_connection_is_that_connections(core):
    bob = core.admitted(token(**{"x-ably-clientId": "bob"}))
    rest = core.admitted(realtime=False).session
    core.append(rest, "a", connection_key=bob.key)
    (produce,) = core.take(Produce)
    body = msgspec.msgpack.decode(produce.value, type=RecordBody)
    assert (body.connection_id, body.messages[0].client_id) == (bob.session, "bob")


@pytest.fixture
def elsewhere() -> Dialogue:
    core = Dialogue(name="core-2")
    core.edge_up(identity=OTHER_EDGE, boot="boot-2")
    return core


def reads_of(core: Dialogue, elsewhere: Dialogue) -> None:
    for record in elsewhere.written:
        core.happens(record)


def test_a_connection_of_another_core_is_waited_for_before_its_key_is_refused(core, elsewhere):
    bob = elsewhere.admitted(token(**{"x-ably-clientId": "bob"}))
    rest = core.admitted(realtime=False).session
    req = core.append(rest, "a", connection_key=bob.key)
    assert core.take(Produce) == []
    reads_of(core, elsewhere)
    core.sessions_round()
    (produce,) = core.take(Produce)
    body = msgspec.msgpack.decode(produce.value, type=RecordBody)
    assert (body.connection_id, body.messages[0].client_id) == (bob.session, "bob")
    assert req not in [frame.req for frame in core.sent() if isinstance(frame, Refused)]


def test_a_connection_whose_first_record_is_on_its_way_has_a_second_to_be_known(core, elsewhere):
    bob = elsewhere.admitted(token(**{"x-ably-clientId": "bob"}))
    rest = core.admitted(realtime=False).session
    refused = core.append(rest, "a", connection_key=bob.key)
    core.sessions_round()
    core.tick(0.9)
    assert core.sent() == []
    core.tick(1.2)
    assert core.answer(refused).error.code == 40006

    core.append(rest, "a", connection_key=bob.key)
    core.sessions_round()
    assert core.take(Produce) == []
    reads_of(core, elsewhere)
    (produce,) = core.take(Produce)
    assert msgspec.msgpack.decode(produce.value, type=RecordBody).connection_id == bob.session
    core.tick(2)
    assert core.take(Produce) == []


def test_an_edge_that_goes_while_its_publish_waits_publishes_nothing(core, elsewhere):
    bob = elsewhere.admitted()
    rest = core.admitted(realtime=False).session
    core.append(rest, "a", connection_key=bob.key)
    core.sessions_round()
    core.happens(EdgeLost(1, "gone"))
    reads_of(core, elsewhere)
    assert core.take(Produce) == []


def test_nobody_publishes_for_a_connection_that_was_closed_or_dropped_long_ago(core):
    rest = core.admitted(realtime=False).session
    for closed, seconds in ((True, 0), (False, 121)):
        bob = core.admitted()
        core.edge_sends(Depart(bob.session, closed))
        core.sessions_round()
        core.tick(seconds)
        req = core.append(rest, "a", connection_key=bob.key)
        core.sessions_round()
        assert core.answer(req).error.code == 40006


def test_a_connection_key_that_is_not_ours_or_of_another_client(core):
    bob = core.admitted(token(**{"x-ably-clientId": "bob"}))
    rest = core.admitted(realtime=False).session
    eve = core.admitted(token(**{"x-ably-clientId": "eve"}), realtime=False).session
    other_app = core.admitted(f"bank.all:{SECRET}", realtime=False).session
    for session, text in ((rest, "invalid"), (eve, bob.key), (other_app, bob.key), (bob.session, bob.key)):
        assert core.answer(core.append(session, "a", connection_key=text)).error.code == 40006
    assert core.take(Produce) == []


def test_a_departed_session_publishes_no_more(core):
    session = core.admitted().session
    core.edge_sends(Depart(session, False))
    assert core.answer(core.append(session, "a")).error.code == 40101
    assert core.counted("append.no_grant") == 1

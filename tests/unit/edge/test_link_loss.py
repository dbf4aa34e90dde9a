"""A lost link is not the clients' business. What is told here of one edge and two cores is told of sockets in the end-to-end tests."""

from __future__ import annotations

import random

import pytest

from edge.ably.protocol import DEFAULT_MODES, Flag
from relay.link.frames import Admit, Append, Appended, Depart, Drain, Open, Opened, Present, Record, Shut
from relay.model.errors import ErrorInfo
from relay.model.limits import EdgeLimits
from tests.unit.edge.playbook import Client, Edge


def publish(edge: Edge, client: Client, serial: int, channel: str = "c") -> None:
    edge.sends(client, action=15, channel=channel, msgSerial=serial, messages=[{"data": str(serial)}])


def test_a_channel_is_opened_again_after_its_last_record_and_nobody_notices(edge: Edge) -> None:
    client = edge.connect()
    opening, _ = edge.attach(client, "c", head=50)
    edge.core(edge.record(opening.req, 55))
    edge.gets(client, action=15)
    edge.link_lost()
    edge.gets_nothing(client)
    link = edge.link_up()
    present, again = edge.sent[link]
    assert isinstance(present, Present)
    assert isinstance(again, Open)
    assert (again.after, again.witness) == (edge.serial("c", 55), client.session)
    edge.core(edge.record(again.req, 58), edge.record(again.req, 57), link=link)
    edge.gets_nothing(client)
    edge.core(Opened(again.req, edge.serial("c", 58)), edge.record(again.req, 59), link=link)
    assert [edge.gets(client)["channelSerial"] for _ in range(3)] == [edge.serial("c", offset) for offset in (57, 58, 59)]
    edge.gets_nothing(client)


def test_what_arrives_twice_around_a_reopening_is_delivered_once(edge: Edge) -> None:
    client = edge.connect()
    opening, _ = edge.attach(client, "c", head=50)
    edge.core(edge.record(opening.req, 55))
    edge.link_lost()
    link = edge.link_up()
    (again,) = edge.take(Open, link=link)
    repeated = [edge.record(again.req, offset) for offset in (54, 55, 56)]
    edge.core(*repeated, Opened(again.req, edge.serial("c", 56)), *repeated, link=link)
    assert [edge.gets(client)["channelSerial"] for _ in range(2)] == [edge.serial("c", 55), edge.serial("c", 56)]
    edge.gets_nothing(client)


def test_lost_continuity_is_said_by_an_attached_without_resumed(edge: Edge) -> None:
    client = edge.connect()
    edge.attach(client, "c", head=50)
    edge.link_lost()
    link = edge.link_up()
    (again,) = edge.take(Open, link=link)
    edge.core(
        edge.record(again.req, 90), Opened(again.req, edge.serial("c", 90), ErrorInfo.of(90004, "more than can be replayed")), link=link
    )
    attached = edge.gets(client, action=11, code=90004, channelSerial=edge.serial("c", 90))
    assert attached["flags"] & 4 == 0
    edge.gets(client, action=15, channelSerial=edge.serial("c", 90))


def test_more_than_can_be_held_while_reopening_is_lost_continuity() -> None:
    edge = Edge(limits=EdgeLimits(held_records=10))
    client = edge.connect()
    edge.attach(client, "c", head=50)
    edge.link_lost()
    link = edge.link_up()
    (again,) = edge.take(Open, link=link)
    edge.core(*[edge.record(again.req, 60 + number) for number in range(12)], link=link)
    edge.gets(client, action=11, code=90004, flags=DEFAULT_MODES | Flag.HAS_PRESENCE)  # who is present is not known yet
    (fresh,) = edge.take(Open, link=link)
    assert fresh.after is None
    edge.core(Opened(fresh.req, edge.serial("c", 80)), edge.record(fresh.req, 81), link=link)
    edge.gets(client, action=16, presence=[])
    edge.gets(client, action=15, channelSerial=edge.serial("c", 81))


def test_unanswered_appends_are_sent_again_in_order_under_their_ids_and_not_as_fresh(edge: Edge) -> None:
    client = edge.connect()
    for serial in range(5):
        publish(edge, client, serial)
    appends = edge.take(Append)
    edge.appended(appends[0], 10)
    edge.gets(client, action=1, msgSerial=0)
    edge.link_lost()
    publish(edge, client, 5)
    link = edge.link_up()
    assert type(edge.sent[link][0]) is Present
    again = edge.take(Append, link=link)
    assert [append.id for append in again] == [f"c:{client.session}:{serial}" for serial in range(1, 6)]
    assert not any(append.fresh for append in again)
    edge.core(*[Appended(append.req, edge.serial("c", 11 + index)) for index, append in enumerate(again)], link=link)
    edge.gets(client, action=1, msgSerial=1, count=5)


def test_a_late_answer_of_a_lost_link_means_nothing(edge: Edge) -> None:
    client = edge.connect()
    publish(edge, client, 0)
    (append,) = edge.take(Append)
    edge.link_lost()
    edge.link_up()
    edge.core(Appended(append.req, edge.serial("c", 1)), link=1)
    edge.gets_nothing(client)


def test_a_channel_stays_on_its_link_while_appends_are_unanswered() -> None:
    edge = Edge()
    client = edge.connect()
    publish(edge, client, 0)
    edge.link_up("core-b")
    edge.link_up("core-c")
    for serial in range(1, 10):
        publish(edge, client, serial)
    assert len(edge.take(Append)) == 10


def test_publishes_wait_for_a_link_and_are_given_up_after_20_s(edge: Edge) -> None:
    client = edge.connect("key=a.b:c&v=6&heartbeats=false")
    edge.link_lost()
    publish(edge, client, 0)
    edge.wait(15)
    edge.gets_nothing(client)
    edge.wait(6)
    edge.gets(client, action=6, code=50003)
    link = edge.link_up()
    assert edge.take(Append, link=link) == [], "nobody waits for it any more: the client sends it again itself"


def test_an_attach_waits_for_a_link(edge: Edge) -> None:
    client = edge.connect("key=a.b:c&v=6&heartbeats=false")
    edge.link_lost()
    edge.sends(client, action=10, channel="c")
    edge.wait(3)
    link = edge.link_up()
    (opening,) = edge.take(Open, link=link)
    edge.core(Opened(opening.req, edge.serial("c", 1)), link=link)
    edge.gets(client, action=11)


def test_appends_of_a_client_that_is_gone_end_with_the_link(edge: Edge) -> None:
    client = edge.connect()
    publish(edge, client, 0)
    edge.lose(client)
    edge.link_lost()
    link = edge.link_up()
    assert edge.take(Append, link=link) == []
    assert (edge.node.unanswered, edge.node.channels) == (0, 0)


def test_after_a_loss_a_connection_that_saw_it_sends_nothing_as_fresh(edge: Edge) -> None:
    before = edge.connect()
    edge.link_lost()
    link = edge.link_up()
    after = edge.connect(link=link)
    publish(edge, before, 0, "c")
    publish(edge, after, 0, "d")
    assert [append.fresh for append in edge.take(Append, link=link)] == [False, True]


def test_a_departure_is_told_to_a_core_that_has_never_seen_the_session(edge: Edge) -> None:
    client = edge.connect()
    edge.link_lost()
    link = edge.link_up()
    edge.lose(client)
    assert [type(frame) for frame in edge.sent[link]] == [Present, Depart]


def test_a_draining_core_is_left_once_its_answers_are_in() -> None:
    edge = Edge()
    client = edge.connect()
    opening, _ = edge.attach(client, "c", head=50)
    publish(edge, client, 0)
    (append,) = edge.take(Append)
    other = edge.link_up("core-b")
    edge.core(Drain("stopping"))
    assert edge.take(Open, link=other) == []
    edge.core(edge.record(opening.req, 51))
    edge.appended(append, 51)
    (again,) = edge.take(Open, link=other)
    assert again.after == edge.serial("c", 51)
    assert edge.take(Shut) == [Shut(opening.req)]
    edge.core(Opened(again.req, edge.serial("c", 51)), edge.record(again.req, 52), link=other)
    edge.gets(client, action=15)
    edge.gets(client, action=1)
    edge.gets(client, action=15, channelSerial=edge.serial("c", 52))


def test_a_draining_core_is_kept_until_there_is_another() -> None:
    edge = Edge()
    client = edge.connect()
    opening, _ = edge.attach(client, "c")
    edge.core(Drain("stopping"))
    edge.core(edge.record(opening.req, 51))
    edge.gets(client, action=15)
    other = edge.link_up("core-b")
    assert len(edge.take(Open, link=other)) == 1


def test_a_client_catching_up_when_the_link_is_lost_catches_up_on_the_next(edge: Edge) -> None:
    client = edge.connect()
    edge.sends(client, action=10, channel="c", channelSerial=edge.serial("c", 40))
    edge.core(Opened(edge.take(Open)[0].req, edge.serial("c", 50)))
    assert len(edge.take(Open)) == 1
    edge.link_lost()
    link = edge.link_up()
    edge.core(Opened(edge.take(Open, link=link)[0].req, edge.serial("c", 50)), link=link)
    (replay,) = edge.take(Open, link=link)
    assert replay.after == edge.serial("c", 40)
    edge.core(edge.record(replay.req, 45), Opened(replay.req, edge.serial("c", 50)), link=link)
    edge.gets(client, action=11)
    edge.gets(client, action=15, channelSerial=edge.serial("c", 45))


@pytest.mark.parametrize("seed", range(30))
def test_whatever_links_do_every_message_arrives_once_and_in_order(seed: int) -> None:
    """Publishes, deliveries and lost links in random order: one log, exactly once, in order, and no ACK without its record."""
    chance = random.Random(seed)
    edge = Edge(cores=2)
    log: list[str] = []  # publish ids, in the order of the log
    bodies: dict[int, Append] = {}

    def serve(link: int, most: int) -> None:
        """The core at `link` works through some of what it was sent."""
        for _ in range(most):
            if link not in edge.sent or not edge.sent[link]:
                return
            frame = edge.sent[link].pop(0)
            if isinstance(frame, Admit):
                edge.core(edge.admitted(frame.req, f"sess{frame.req:06d}"), link=link)
            elif isinstance(frame, Append):
                if frame.id not in log:
                    log.append(frame.id)
                    bodies[len(log)] = frame
                    for other in list(edge.sent):
                        for ref in list(opened.get(other, ())):
                            outgoing.append((other, record(ref, len(log))))
                if chance.random() < 0.8:  # otherwise the answer is lost with the link, or late
                    outgoing.append((link, Appended(frame.req, edge.serial("c", log.index(frame.id) + 1))))
                else:
                    unanswered.append((link, frame))
            elif isinstance(frame, Open):
                after = int(frame.after.rsplit("-", 1)[1]) if frame.after else len(log)
                for offset in range(after + 1, len(log) + 1):
                    outgoing.append((link, record(frame.req, offset)))
                outgoing.append((link, Opened(frame.req, edge.serial("c", len(log)))))
                opened.setdefault(link, {})[frame.req] = None
            elif isinstance(frame, Shut):
                opened.get(link, {}).pop(frame.ref, None)

    def record(ref: int, offset: int) -> Record:
        return edge.record(ref, offset, *bodies[offset].messages, connection=bodies[offset].session, id=bodies[offset].id)

    opened: dict[int, dict[int, None]] = {}
    outgoing: list[tuple[int, object]] = []
    unanswered: list[tuple[int, Append]] = []

    def deliver(most: int) -> None:
        for _ in range(min(most, len(outgoing))):
            link, frame = outgoing.pop(0)
            if link in edge.sent:
                edge.core(frame, link=link)  # type: ignore[arg-type]

    client, publisher = edge.open(), edge.open()
    for link in (1, 2):
        serve(link, 10)
    deliver(10)
    assert edge.gets(client, action=4)
    assert edge.gets(publisher, action=4)
    edge.sends(client, action=10, channel="c")
    for link in (1, 2):
        serve(link, 10)
    deliver(10)
    assert edge.gets(client, action=11)
    published = 0
    up = [1, 2]
    while published < 60:
        match chance.randrange(8):
            case 0 if len(up) > 1 and chance.random() < 0.5:
                lost = up.pop(chance.randrange(len(up)))
                opened.pop(lost, None)
                edge.link_lost(lost)
            case 1 if len(up) < 2:
                up.append(edge.link_up(f"core-{chance.randrange(100)}"))
            case 2 | 3 | 4:
                publish(edge, publisher, published)
                published += 1
            case _:
                for link in list(up):
                    serve(link, chance.randrange(6))
                deliver(chance.randrange(10))
                edge.wait(0.05)
    for _ in range(20):
        for link in list(up):
            serve(link, 1000)
        while outgoing:
            deliver(1000)
        late, unanswered[:] = list(unanswered), []
        for link, append in late:
            outgoing.append((link, Appended(append.req, edge.serial("c", log.index(append.id) + 1))))
        edge.wait(0.1)
    got = [message for message in client.inbox if message["action"] == 15]
    assert [message["messages"][0]["data"] for message in got] == [str(number) for number in range(60)]
    acks = [message for message in publisher.inbox if message["action"] == 1]
    assert [ack["msgSerial"] + index for ack in acks for index in range(ack["count"])] == list(range(60))
    assert all(
        result["serials"] == [f"{edge.serial('c', ack['msgSerial'] + index + 1)}:000"]
        for ack in acks
        for index, result in enumerate(ack["res"])
    )
    assert client.closed is None
    assert publisher.closed is None

"""Opening channels, live delivery, replay. Ably protocol docs, 3.5."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import msgspec
import pytest

from core import state
from core.effects import AskEnd, LinkSend
from core.events import Congested, EdgeLost, EndOffset, Gap, Looked, StateRead, Tailed, Tick
from core.index import MemoryIndex
from core.replay import EXPIRED
from core.state import LastState
from relay.link.frames import Depart, Lane, Lost, Opened, Record, Refused, Renew, Shut
from relay.model.channel import log_key, partition_of
from relay.model.limits import CoreLimits
from relay.model.message import Message, RecordBody
from relay.model.serials import Serial
from tests.unit.core.dialogue import OTHER_EDGE, SECRET, STREAM, Dialogue, serial, token


def core_with_reader(**more) -> tuple[Dialogue, str]:
    core = Dialogue(**more)
    core.edge_up()
    return core, core.admitted().session


def writes(core: Dialogue, channel: str, count: int, size: int = 1, start: int = 0) -> list:
    records = [core.record(channel, bytes([n % 256]) * size, f"s:{channel}:{n}") for n in range(start, start + count)]
    core.happens(Tailed(records))
    return records


def test_a_channel_opens_at_its_head_and_everything_later_follows():
    core, session = core_with_reader()
    before = writes(core, "a", 3)
    req = core.open("a", session)
    assert core.answer(req) == Opened(req, serial(before[-1]))
    after = writes(core, "a", 2, start=3)
    assert core.sent() == [Record(req, record.offset, 0, record.value) for record in after]


def test_an_empty_partition_has_a_head_before_its_first_record():
    core, session = core_with_reader()
    req = core.open("a", session)
    head = core.answer(req).serial
    (first,) = writes(core, "a", 1)
    assert head < serial(first)
    core.edge_sends(Shut(req))
    again = core.open("a", session, after=head)
    core.turns()
    frames = core.sent()
    assert [type(frame) for frame in frames] == [Record, Record, Opened]
    assert (frames[0].ref, frames[1].ref, frames[2].req) == (req, again, again)


def test_a_reopened_channel_gets_what_it_missed_on_bulk_and_then_live():
    core, session = core_with_reader()
    records = writes(core, "a", 10)
    writes(core, "b", 5)
    req = core.open("a", session, after=serial(records[3]))
    core.turns()
    sends = core.take(LinkSend)
    assert [send.lane for send in sends] == [Lane.BULK] * 7
    assert [send.frame.offset for send in sends[:-1]] == [record.offset for record in records[4:]]
    opened = sends[-1].frame
    assert (opened.req, opened.error) == (req, None)
    assert opened.serial >= serial(records[-1])
    (live,) = writes(core, "a", 1, start=10)
    (send,) = core.take(LinkSend)
    assert (send.lane, send.frame) == (Lane.LIVE, Record(req, live.offset, 0, live.value))


def test_records_that_come_in_during_a_replay_are_neither_lost_nor_doubled_nor_early():
    core, session = core_with_reader(limits=CoreLimits(replay_turn_bytes=1000))
    records = writes(core, "a", 20, size=400)
    core.open("a", session, after=serial(records[0]))
    for n in range(20, 30):
        core.tick()
        records += writes(core, "a", 1, size=400, start=n)
    core.turns()
    frames = core.sent()
    opened = next(at for at, frame in enumerate(frames) if isinstance(frame, Opened))
    assert [frame.offset for frame in frames if isinstance(frame, Record)] == [record.offset for record in records[1:]]
    assert frames[opened].error is None
    assert all(serial(record) <= frames[opened].serial for record in records[1 : opened + 1])


def test_more_than_a_replay_holds_gives_the_newest_part_and_says_so():
    core, session = core_with_reader(limits=CoreLimits(replay_records=300))
    records = writes(core, "a", 1000)
    core.open("a", session, after=serial(records[0]))
    core.turns()
    frames = core.sent()
    assert [frame.offset for frame in frames[:-1]] == [record.offset for record in records[-300:]]
    assert frames[-1].error.code == 90004


def test_the_bytes_of_a_replay_are_bounded_too():
    core, session = core_with_reader()
    records = writes(core, "a", 50, size=60_000)
    core.open("a", session, after=serial(records[0]))
    core.turns()
    frames = core.sent()
    assert 15 <= len(frames) <= 19
    assert frames[-1].error.code == 90004


def test_a_serial_older_than_the_index_gets_what_is_retained_and_90003():
    core, session = core_with_reader()
    old = writes(core, "a", 5)
    core.tick(200)
    new = writes(core, "a", 3, start=5)
    core.open("a", session, after=serial(old[0]))
    core.turns()
    frames = core.sent()
    assert [frame.offset for frame in frames[:-1]] == [record.offset for record in new]
    assert frames[-1].error.code == 90003


@pytest.mark.parametrize("after", ["", "garbage", "zzzzzzzz-0000-0000000000000000", None])
def test_a_serial_of_another_stream_partition_or_none_attaches_at_the_head(after):
    core, session = core_with_reader()
    (record,) = writes(core, "a", 1)
    other = (record.partition + 1) % STREAM.partitions
    req = core.open("a", session, after=Serial(STREAM.id, other, 0).text if after is None else after)
    opened = core.answer(req)
    assert (opened.serial, opened.error.code) == (serial(record), 90005)
    writes(core, "a", 1, start=1)
    assert len(core.sent()) == 1


def test_a_serial_ahead_of_this_core_waits_for_the_tail():
    """The edge comes from another core that had read further."""
    core, session = core_with_reader()
    records = [core.record("a", publish_id=f"s:{n}") for n in range(3)]
    req = core.open("a", session, after=serial(records[1]))
    assert core.sent() == []
    core.answer_ends()
    assert core.sent() == []
    core.happens(Tailed(records))
    core.turns()
    frames = core.sent()
    assert [frame.offset for frame in frames[:-1]] == [2]
    assert frames[-1] == Opened(req, serial(records[2]))


def test_a_serial_beyond_the_end_of_the_log_was_never_ours():
    core, session = core_with_reader()
    (record,) = writes(core, "a", 1)
    req = core.open("a", session, after=Serial(STREAM.id, record.partition, 10**15).text)
    core.answer_ends()
    assert core.answer(req).error.code == 90005
    assert core.counted("open.beyond_end") == 1


def test_without_an_answer_from_kafka_the_wait_is_bounded():
    core, session = core_with_reader()
    req = core.open("a", session, after=serial(core.record("a")))
    (ask,) = core.take(AskEnd)
    core.happens(EndOffset(ask.ask, ask.partition, None))
    core.tick(11)
    assert core.answer(req).error.code == 50003
    assert core.node.status()["channels"] == 0


def test_duplicates_are_neither_delivered_nor_replayed():
    core, session = core_with_reader()
    req = core.open("a", session)
    head = core.answer(req).serial
    core.happens(Tailed([core.record("a", b"1", "i:x"), core.record("a", b"2", "i:x"), core.record("a", b"3", "i:y")]))
    assert [frame.body for frame in core.sent()] == [b"1", b"3"]
    core.open("a", session, after=head)
    core.turns()
    assert [frame.body for frame in core.sent()[:-1]] == [b"1", b"3"]


def test_ephemeral_messages_are_delivered_and_never_replayed():
    core, session = core_with_reader()
    req = core.open("a", session)
    head = core.answer(req).serial
    core.append(session, "a", "", Message(data="now"), ephemeral=True)
    core.append(session, "a", "", Message(data="also", extras={"ephemeral": True}))
    core.append(session, "a", "", Message(data="kept"))
    core.kafka_round()
    live = [msgspec.msgpack.decode(f.body, type=RecordBody).messages[0].data for f in core.sent() if isinstance(f, Record)]
    assert live == ["now", "also", "kept"]
    core.open("a", session, after=head)
    core.turns()
    replayed = [msgspec.msgpack.decode(f.body, type=RecordBody).messages[0].data for f in core.sent() if isinstance(f, Record)]
    assert replayed == ["kept"]


def test_every_link_with_the_channel_open_gets_the_record_and_no_other():
    core, session = core_with_reader()
    core.edge_up(2, boot="boot-2")
    core.edge_up(3, boot="boot-3")
    second = core.admitted(link=2).session
    core.open("a", session)
    core.open("a", second, link=2)
    core.open("b", session)
    core.sent(1), core.sent(2)
    writes(core, "a", 1)
    assert [len(core.sent(link)) for link in (1, 2, 3)] == [1, 1, 0]


# --- what is known without a read


class CountingIndex(MemoryIndex):
    """Counts reads. What it holds and from where is no read."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = 0

    def read_after(self, *place):
        self.reads += 1
        return super().read_after(*place)

    def read_before(self, *place):
        self.reads += 1
        return super().read_before(*place)

    def head(self, *place):
        self.reads += 1
        return super().head(*place)


def neighbours(channel: str) -> Iterator[str]:
    """Other channels of the same partition."""
    place = partition_of(log_key("shop", channel), STREAM.partitions)
    return (name for name in (f"b{n}" for n in range(1000)) if partition_of(log_key("shop", name), STREAM.partitions) == place)


def test_a_channel_that_was_quiet_is_resumed_however_old_the_serial_is():
    core, _ = core_with_reader(index=CountingIndex())
    (last,) = writes(core, "a", 1)
    other = next(neighbours("a"))
    for hour in range(3):
        core.tick(3600)
        writes(core, other, 2, start=2 * hour)
    session = core.admitted().session
    assert core.index.covers_from(STREAM.id, last.partition) > last.offset + 1
    req = core.open("a", session, after=serial(last))
    opened = core.answer(req)
    assert (opened.error, opened.serial > serial(last)) == (None, True)
    assert core.index.reads == 0
    (live,) = writes(core, "a", 1, start=1)
    assert core.sent() == [Record(req, live.offset, 0, live.value)]


def test_a_channel_with_one_record_since_is_not():
    core, _ = core_with_reader(index=CountingIndex())
    first, _ = writes(core, "a", 2)
    core.tick(3600)
    session = core.admitted().session
    req = core.open("a", session, after=serial(first))
    assert core.answer(req).error.code == 90003
    assert core.index.reads == 0, "nothing of the channel is held either"


def test_quiet_channels_are_known_over_a_restart_by_the_state():
    """Of what the tail has not read the state says which channels had a record since, from `quiet_from` on."""
    core = Dialogue(ready=False, restored=False)
    key = log_key("shop", "a")
    place = partition_of(key, STREAM.partitions)
    for partition in range(STREAM.partitions):
        last = {state.last_key(key): state.encode(LastState(offset=200, at=1))} if partition == place else {}
        core.happens(StateRead(partition, 5_000, last, quiet_from=100))
        core.happens(Looked(partition, 4_000, 5_000))
        core.ends[partition] = 5_000
    core.tick()
    assert core.node.ready
    core.edge_up()
    session = core.admitted().session
    other = next(neighbours("a"))
    expected = {("a", 200): None, ("a", 199): 90003, (other, 99): None, (other, 98): 90003}
    for (channel, after), code in expected.items():
        req = core.open(channel, session, after=Serial(STREAM.id, place, after).text)
        core.answer_ends()
        core.turns()
        error = core.answer(req).error
        assert (None if error is None else error.code) == code, (channel, after)


def test_what_is_not_remembered_of_quiet_channels_is_not_claimed():
    core, _ = core_with_reader(limits=CoreLimits(recent_channels=STREAM.partitions))
    (last,) = writes(core, "a", 1)
    for name in islice(neighbours("a"), 2):
        writes(core, name, 1)
    core.tick(3600)
    session = core.admitted().session
    assert core.answer(core.open("a", session, after=serial(last))).error.code == 90003


def test_forged_serials_cost_no_read_of_the_index():
    """Wrong ones are told by the marks, and right ones of a channel with nothing to replay by what is known of its last record."""
    core, _ = core_with_reader(index=CountingIndex())
    (old,) = writes(core, "a", 1)
    core.tick(3600)
    session = core.admitted().session
    records = writes(core, next(neighbours("a")), 300)
    forged = {
        "garbage": 90005,
        "": 90005,
        Serial("zzzzzzzz", old.partition, old.offset).text: 90005,
        Serial(STREAM.id, (old.partition + 1) % STREAM.partitions, 1).text: 90005,
        Serial(STREAM.id, old.partition, 10**15).text: 90005,
        Serial(STREAM.id, old.partition, -1).text: 90003,
        serial(records[5]): None,
        serial(records[-1]): None,
    }
    for after, code in forged.items():
        for _ in range(25):
            req = core.open("a", session, after=after)
            core.answer_ends()
            core.turns()
            error = core.answer(req).error
            assert (None if error is None else error.code) == code, after
    assert core.index.reads == 0


# --- replays take turns


def test_replays_of_an_app_and_of_a_link_have_so_many_bytes_a_second():
    limits = CoreLimits(app_replay_bytes_per_s=100_000, link_replay_bytes_per_s=150_000, replay_turn_bytes=10_000)
    core, session = core_with_reader(limits=limits)
    bank = core.admitted(f"bank.all:{SECRET}").session
    for app, witness in (("shop", session), ("bank", bank)):
        for name in "abcd":
            records = [core.record(name, b"v" * 10_000, f"s:{name}:{n}", app=app) for n in range(51)]
            core.happens(Tailed(records))
            core.open(name, witness, after=serial(records[0]), app=app)
    sent = []
    for _ in range(40):
        core.turns()
        sent.append(sum(len(frame.body) for frame in core.sent() if isinstance(frame, Record)))
        due = core.node.next_deadline()
        assert due is not None
        assert due > core.now, "it sleeps until there is something to do"
        core.tick(1.0)
    assert sum(sent) == 8 * 500_000
    for seconds in range(1, 20):
        assert sum(sent[:seconds]) <= 150_000 * (seconds + 1) + 10_000
    assert sum(sent[:6]) >= 150_000 * 5, "both apps go on at once"
    assert len(core.node._replays) == 0


def test_a_link_that_does_not_take_what_was_sent_gets_nothing_of_the_past_and_all_that_is_live():
    core, session = core_with_reader(limits=CoreLimits(replay_turn_bytes=1_000))
    bank = core.edge_up(2, OTHER_EDGE)
    other = core.admitted(link=bank).session
    records = writes(core, "a", 11, size=1_000)
    live = core.open("b", session)
    core.answer(live)
    for link, witness in ((1, session), (bank, other)):
        core.open("a", witness, after=serial(records[0]), link=link)
    for _ in range(3):
        core.tick()
    core.happens(Congested(1, on=True))
    before = len(core.sent(1))
    assert 1 <= before <= 3
    core.turns()
    assert len(core.sent(bank)) == 11, "the others go on"
    writes(core, "b", 1)
    assert [frame.ref for frame in core.sent(1)] == [live]
    core.happens(Congested(1, on=False))
    core.turns()
    assert len(core.sent(1)) == 11 - before
    core.happens(Congested(1, on=True))
    core.happens(EdgeLost(1, "slow"))
    core.happens(Congested(1, on=True))
    core.edge_up(1)
    again = core.open("a", core.admitted().session, after=serial(records[0]))
    core.turns()
    assert core.answer(again).error is None, "a new link has room"


def test_an_app_that_has_too_many_replays_waiting_is_told_to_come_back_and_another_is_not():
    core, session = core_with_reader(limits=CoreLimits(app_replays=1, app_replays_waiting=3))
    bank = core.admitted(f"bank.all:{SECRET}").session
    (first, *_) = writes(core, "a", 5)
    reqs = [core.open("a", session, after=serial(first)) for _ in range(5)]
    refused = [core.answer(req) for req in reqs[3:]]
    assert {type(answer) for answer in refused} == {Refused}
    assert {answer.error.code for answer in refused} == {42912}
    records = [core.record("a", app="bank") for _ in range(2)]
    core.happens(Tailed(records))
    other = core.open("a", bank, after=serial(records[0]), app="bank")
    core.turns()
    frames = core.sent()
    assert sorted(frame.req for frame in frames if isinstance(frame, Opened)) == [*reqs[:3], other]
    assert core.node.status()["channels"] == 4


def test_a_shut_channel_is_silent_also_in_the_middle_of_a_replay():
    core, session = core_with_reader(limits=CoreLimits(replay_turn_bytes=100))
    records = writes(core, "a", 10, size=90)
    req = core.open("a", session, after=serial(records[0]))
    for _ in range(4):
        core.tick()
    assert 0 < len(core.sent()) < 9
    core.edge_sends(Shut(req))
    core.turns()
    writes(core, "a", 1, start=20)
    assert core.sent() == []
    core.edge_sends(Shut(req))


def test_replays_take_turns_and_few_run_at_once():
    core, session = core_with_reader(limits=CoreLimits(replay_turn_bytes=500, link_replays=2))
    heads = {}
    for name in "abcdef":
        heads[name] = writes(core, name, 4, size=300)
    reqs = {core.open(name, session, after=serial(records[0])): name for name, records in heads.items()}
    core.turns()
    frames = core.sent()
    opened = [reqs[frame.req] for frame in frames if isinstance(frame, Opened)]
    assert sorted(opened) == list("abcdef")
    for req, name in reqs.items():
        assert [f.offset for f in frames if isinstance(f, Record) and f.ref == req] == [record.offset for record in heads[name][1:]]


def test_a_gap_in_the_log_is_told_to_every_channel_of_the_partition():
    core, session = core_with_reader()
    (record,) = writes(core, "a", 1)
    req = core.open("a", session)
    core.answer(req)
    core.happens(Gap(STREAM.id, record.partition, 1, 50))
    assert core.sent() == [Lost(req, EXPIRED)]
    again = core.open("a", session, after=serial(record))
    core.turns()
    assert core.answer(again).error.code == 90003


# --- witnesses


def test_a_channel_outlives_its_witness_while_another_session_may_read_it():
    core, session = core_with_reader()
    reader = core.admitted(token("shop.chat")).session
    req = core.open("chat:a", session)
    core.answer(req)
    core.edge_sends(Depart(session, True))
    core.tick(11)
    writes(core, "chat:a", 1)
    assert [type(frame) for frame in core.sent()] == [Record]
    core.edge_sends(Depart(reader, True))
    core.tick(5)
    writes(core, "chat:a", 1, start=1)
    assert [type(frame) for frame in core.sent()] == [Record]
    core.tick(6)
    (lost,) = core.sent()
    assert (lost.ref, lost.error.code) == (req, 40160)
    writes(core, "chat:a", 1, start=2)
    assert core.sent() == []
    assert core.counted("open.witness_gone") == 1


def test_a_witness_whose_grant_ends_is_gone_too():
    core, session = core_with_reader()
    req = core.open("a", session)
    core.answer(req)
    core.tick(400)
    core.tick(20)
    (lost,) = core.sent()
    assert (lost.ref, lost.error.code) == (req, 40160)


def test_a_witness_that_is_presented_again_keeps_the_channel():
    core, session = core_with_reader()
    core.open("a", session)
    core.sent()
    core.tick(290)
    core.edge_sends(Renew(900, session))
    core.answer(900)
    core.tick(100)
    core.tick(20)
    assert core.sent() == []


def test_time_alone_never_makes_work():
    core, session = core_with_reader()
    core.open("a", session)
    core.sent()
    for _ in range(100):
        core.happens(Tick())
    assert core.effects == []
    assert core.node.next_deadline() > core.now

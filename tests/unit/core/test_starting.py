"""From start to ready: nothing is served before the core has looked back, and little is refused that may wait a moment."""

from __future__ import annotations

import pytest

from core.effects import AskConfigEnd, LinkClose
from core.events import EdgeLost, EndOffset, Gap, Looked, StateRead, Tailed
from core.fold import SKEW_MS, WINDOW_MS
from core.log import LogRecord
from core.node import LOOK_BACK_MS
from relay.link.frames import Admit, Admitted, Opened, Present, Record, Refused, Unknown
from relay.model.limits import CoreLimits
from relay.model.message import Message
from tests.unit.core.dialogue import SECRET, STREAM, Dialogue, serial


def look_back(core: Dialogue, start: int = 0) -> None:
    for partition in range(STREAM.partitions):
        core.happens(Looked(partition, start, core.ends[partition]))


def replayed(core: Dialogue, session: int, after: LogRecord) -> tuple[list[int], int | None]:
    """Offsets and the code of what a client gets that was there until `after`."""
    core.open("a", session, after=serial(after))
    core.turns()
    *frames, opened = core.sent()
    return [frame.offset for frame in frames], opened.error.code if opened.error else None


def test_ready_when_all_partitions_are_read_and_the_configuration_too():
    core = Dialogue(ready=False, sandbox=True)
    look_back(core)
    assert not core.node.ready
    core.tick()
    (ask,) = core.take(AskConfigEnd)
    core.happens(EndOffset(ask.ask, -1, None))
    core.tick(2)
    (ask,) = core.take(AskConfigEnd)
    core.happens(EndOffset(ask.ask, -1, 3))
    assert core.node.ready


def test_what_edges_ask_meanwhile_waits_in_its_order():
    core = Dialogue(ready=False)
    other = Dialogue()
    other.edge_up()
    grant = other.admitted()
    core.edge_up()
    core.edge_sends(Admit(1, f"shop.all:{SECRET}", True, True, True, 6))
    core.edge_sends(Present(grant.grant))
    core.last_req = 10
    req = core.open("a", grant.session)
    core.tick(5)
    assert core.sent() == []
    look_back(core)
    core.turns()
    core.answer_ends()
    assert sorted(type(frame).__name__ for frame in core.sent()) == ["Admitted", "Opened"]
    assert req == 11


def test_waiting_is_bounded_in_time_and_number():
    core = Dialogue(ready=False, limits=CoreLimits(starting_frames=2))
    core.edge_up(1)
    core.edge_up(2, boot="boot-2")
    core.edge_sends(Admit(1, None, True, True, True, 6))
    core.append("x", "a")
    core.tick(11)
    assert [(type(frame), frame.error.code) for frame in core.sent()] == [(Refused, 50320)] * 2
    for _ in range(3):
        core.edge_sends(Admit(1, None, True, True, True, 6), 2)
    assert [close.link for close in core.take(LinkClose)] == [2]


def test_waiting_is_bounded_in_bytes():
    core = Dialogue(ready=False, limits=CoreLimits(starting_bytes=10_000))
    core.edge_up()
    for _ in range(3):
        core.append("s", "a", "", Message(data="x" * 3_000))
    assert core.take(LinkClose) == []
    core.append("s", "a", "", Message(data="x" * 3_000))
    assert [close.link for close in core.take(LinkClose)] == [1]
    core.edge_up()
    core.append("s", "a", "", Message(data="x" * 3_000))  # what waited went with its link
    assert core.take(LinkClose) == []


def test_a_publish_that_may_repeat_an_earlier_one_is_not_refused_while_starting():
    core = Dialogue(ready=False)
    core.edge_up()
    for fresh in (True, False):
        core.append("s", "a", fresh=fresh)
    core.tick(11)
    assert [type(frame) for frame in core.sent()] == [Refused, Unknown]


def test_a_question_for_the_end_of_the_configuration_that_nobody_answers_is_asked_again():
    core = Dialogue(ready=False, sandbox=True)
    look_back(core)
    core.tick()
    (lost,) = core.take(AskConfigEnd)
    core.tick(5)
    assert core.take(AskConfigEnd) == []
    core.tick(6)
    core.tick(1)
    (ask,) = core.take(AskConfigEnd)
    core.happens(EndOffset(lost.ask, -1, 3))
    assert not core.node.ready
    core.happens(EndOffset(ask.ask, -1, 3))
    assert core.node.ready


def test_a_lost_edge_waits_no_more():
    core = Dialogue(ready=False)
    core.edge_up()
    core.edge_sends(Admit(1, None, True, True, True, 6))
    core.happens(EdgeLost(1, "gone"))
    look_back(core)
    core.turns()
    assert core.sent() == []


def test_records_read_while_looking_back_are_indexed_where_their_verdict_is_sound():
    """A reader that began too late for a record cannot know whether it is a duplicate: such records are not replayed."""
    core = Dialogue(ready=False)
    core.ends = dict.fromkeys(core.ends, 1000)  # the log did not begin here
    start_ms = core.now_ms - LOOK_BACK_MS
    young = start_ms + WINDOW_MS + SKEW_MS
    records = [core.record("a", publish_id=f"s:{n}", ts=ts) for n, ts in enumerate([start_ms, young - 1, young, young + 1, core.now_ms])]
    core.happens(Tailed(records))
    look_back(core, 1000)
    core.edge_up()
    session = core.admitted().session
    sound = [record.offset for record in records[2:]]
    assert replayed(core, session, records[1]) == (sound, None)
    assert replayed(core, session, records[0]) == (sound, 90003)


def test_what_was_written_before_there_was_no_core_for_a_while_is_replayed_after_it():
    """Row M6.1: nobody may have seen the last of it. It is held for two and a half minutes from now on, whatever is written meanwhile."""
    core = Dialogue(ready=False)
    core.ends = dict.fromkeys(core.ends, 1000)
    away_ms = core.now_ms - 3_600_000
    times = [away_ms - WINDOW_MS - SKEW_MS, *range(away_ms, away_ms + 4)]  # the first is what the tail began with
    records = [core.record("a", publish_id=f"s:{n}", ts=ts) for n, ts in enumerate(times)]
    core.happens(Tailed(records))
    core.tick(30)
    look_back(core, 1000)
    core.happens(Tailed([core.record("b", publish_id="s:now")]))
    core.edge_up()
    for waited, code in ((130, None), (30, 90003)):
        core.tick(waited)
        got = replayed(core, core.admitted().session, records[1])
        assert got == ([record.offset for record in records[2:]] if code is None else [], code)


@pytest.mark.parametrize("sound", [True, False], ids=["after a checkpoint", "without one"])
def test_what_was_written_before_there_was_no_core_for_a_while_is_replayed_where_little_was_written(sound):
    """The first record that is read may be much younger than what the tail began with: verdicts are sound from when *it* began."""
    core = Dialogue(ready=False, restored=False)
    core.ends = dict.fromkeys(core.ends, 1000)
    away_ms = core.now_ms - 3_600_000
    records = [core.record("a", publish_id=f"s:{n}", ts=away_ms + ts) for n, ts in enumerate([-200_000, -140_000, -60_000, 0])]
    for partition in range(STREAM.partitions):
        core.happens(StateRead(partition, 1003, {}, time=away_ms - 60_000 if sound else 0))
    core.happens(Tailed(records))
    look_back(core, 1000)
    core.edge_up()
    got = replayed(core, core.admitted().session, records[0])
    assert got == (([record.offset for record in records[1:]], None) if sound else ([], 90003))


def test_a_partition_without_traffic_opens_at_its_end():
    core = Dialogue(ready=False)
    core.ends = dict.fromkeys(core.ends, 1000)
    for partition in range(STREAM.partitions):
        core.happens(Looked(partition, 1000, 1000))
    core.edge_up()
    session = core.admitted().session
    req = core.open("a", session)
    head = core.answer(req).serial
    core.happens(Tailed([core.record("a")]))
    core.sent()
    core.open("a", session, after=head)
    core.turns()
    assert [type(frame) for frame in core.sent()] == [Record, Opened]


def test_a_log_made_anew_under_the_core_ends_its_service():
    core = Dialogue()
    core.edge_up()
    assert isinstance(core.admit(), Admitted)
    core.happens(Gap(STREAM.id, 0, 500, 0))
    assert [close.link for close in core.take(LinkClose)] == [1]
    assert not core.node.ready

"""Reads of the past as a core answers them: after the barrier, bounded, and page after page the same whole."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.effects import AskEnd
from core.events import EndOffset, Tailed
from core.log import LogRecord
from relay.link import calls
from relay.link.frames import Fetch, Page, Refused
from relay.model.limits import CoreLimits
from relay.model.message import Message, RecordBody
from relay.model.serials import Serial, message_serial
from tests.unit.core.dialogue import Dialogue, serial, token

WHAT = {calls.History: calls.HISTORY, calls.OneMessage: calls.MESSAGE, calls.Rewind: calls.REWIND}


class Reader:
    """A core, one session that may do everything, and a channel."""

    def __init__(self, **limits: Any) -> None:
        self.core = Dialogue(limits=CoreLimits(**limits))
        self.core.edge_up()
        self.session = self.core.admitted().session

    def logs(self, *data: str, channel: str = "c", at: int | None = None, **more: Any) -> LogRecord:
        """One publish that is in the log, and has been read."""
        record = self.unread(*data, channel=channel, at=at, **more)
        self.core.happens(Tailed([record]))
        return record

    def unread(self, *data: str, channel: str = "c", at: int | None = None, ephemeral: bool = False) -> LogRecord:
        at = self.core.now_ms if at is None else at
        body = RecordBody("x:0", at, None, [Message(data=each) for each in data], ephemeral=ephemeral)
        return self.core.record(channel, msgspec.msgpack.encode(body), f"s:{self.core.req()}", ts=at)

    def asks(self, call: calls.Read, *, session: str | None = None, link: int = 1) -> int:
        req = self.core.req()
        self.core.edge_sends(Fetch(req, self.session if session is None else session, WHAT[type(call)], calls.encode(call)), link)
        return req

    def reads(self, call: calls.Read) -> Any:
        """The answer of the core, the barrier passed."""
        req = self.asks(call)
        self.core.answer_ends()
        self.core.turns()
        return self.core.answer(req)

    def past(self, call: calls.Read) -> calls.Past:
        page = self.reads(call)
        assert isinstance(page, Page), page
        past = calls.decode_past(page.body)
        assert past is not None
        return past

    def refused(self, call: calls.Read) -> int:
        answer = self.reads(call)
        assert isinstance(answer, Refused), answer
        return answer.error.code

    def history(self, **query: Any) -> list[str]:
        return data_of(self.past(history(**query)), query.get("backwards", True))


def history(**query: Any) -> calls.History:
    return calls.History(**{"channel": "c", "limit": 100, **query})


def data_of(past: calls.Past, backwards: bool = True) -> list[str]:
    found: list[str] = []
    for item in past.items:
        messages = msgspec.msgpack.decode(item.body, type=RecordBody).messages[item.first : item.last + 1]
        found += [message.data for message in (reversed(messages) if backwards else messages)]
    return found


@pytest.fixture
def reader() -> Reader:
    return Reader()


def test_both_directions_keep_the_order_of_a_publish_and_see_one_channel(reader: Reader) -> None:
    reader.logs("a")
    reader.logs("other", channel="d")
    reader.logs("b", "c")
    reader.logs("gone", ephemeral=True)
    assert reader.history() == ["c", "b", "a"]
    assert reader.history(backwards=False) == ["a", "b", "c"]
    assert reader.history(channel="nobody") == []
    assert reader.history(limit=2) == ["c", "b"]
    assert reader.history(limit=2, backwards=False) == ["a", "b"]


def test_a_duplicate_is_left_out(reader: Reader) -> None:
    first = reader.unread("a")
    again = msgspec.structs.replace(reader.unread("a"), id=first.id)
    reader.core.happens(Tailed([first, again]))
    assert reader.history() == ["a"]


def test_bounds_are_inclusive(reader: Reader) -> None:
    now = reader.core.now_ms
    for number in range(5):
        reader.logs(str(number), at=now - 4_000 + number * 1_000)
    assert reader.history(start=now - 3_000, end=now - 1_000) == ["3", "2", "1"]
    assert reader.history(start=now - 3_000, end=now - 1_000, backwards=False) == ["1", "2", "3"]
    assert reader.history(start=now + 1) == reader.history(end=now - 4_001) == []


def test_two_minutes_are_history_and_no_more(reader: Reader) -> None:
    now = reader.core.now_ms
    reader.logs("old", at=now - 120_001)
    reader.logs("edge", at=now - 120_000)
    assert reader.history() == reader.history(backwards=False) == ["edge"]


def test_the_answer_waits_for_all_that_was_acknowledged_before(reader: Reader) -> None:
    """Another core has acknowledged a publish that this one has not read yet."""
    core = reader.core
    record = reader.unread("a")
    req = reader.asks(history())
    (ask,) = core.take(AskEnd)
    assert ask.partition == record.partition
    core.happens(EndOffset(ask.ask, ask.partition, record.offset + 1))
    core.turns()
    assert core.sent() == []
    core.happens(Tailed([record]))
    core.turns()
    page = core.answer(req)
    assert data_of(calls.decode_past(page.body)) == ["a"]


@pytest.mark.parametrize("answered", [True, False])
def test_a_barrier_that_does_not_come_down_refuses_the_read(reader: Reader, answered: bool) -> None:
    core = reader.core
    req = reader.asks(history())
    (ask,) = core.take(AskEnd)
    if answered:
        core.happens(EndOffset(ask.ask, ask.partition, 5))
        core.tick(9.0)
        assert core.sent() == []
        core.tick(2.0)
    else:
        core.happens(EndOffset(ask.ask, ask.partition, None))
    refused = core.answer(req)
    assert (refused.error.code, refused.error.status_code) == (50003, 503)
    core.happens(Tailed([reader.unread(str(number)) for number in range(6)]))
    core.turns()
    assert core.sent() == [], "answered once"


def test_until_attach_is_what_lies_at_or_before_the_attach_point(reader: Reader) -> None:
    reader.logs("a")
    point = serial(reader.logs("b"))
    reader.logs("c")
    assert reader.history(upto=point) == ["b", "a"]
    at = Serial.parse(point)
    assert at is not None
    assert reader.history(upto=at._replace(offset=-1).text) == []


def test_serials_that_are_no_position_of_the_channel_are_refused(reader: Reader) -> None:
    here = Serial.parse(serial(reader.logs("a")))
    assert here is not None
    foreign = [here._replace(stream="zzzzzzzz"), here._replace(partition=here.partition + 1), here._replace(offset=here.offset + 1)]
    for bad in ["nonsense", "", *(place.text for place in foreign)]:
        assert reader.refused(history(upto=bad)) == 90008
        assert reader.refused(history(until=bad)) == 40011
        assert reader.refused(history(cursor=message_serial(bad, 0))) == 40011


def test_the_position_of_a_page_makes_it_repeatable(reader: Reader) -> None:
    reader.logs("a")
    first = reader.past(history())
    reader.logs("b")
    assert data_of(reader.past(history(until=first.serial))) == ["a"]
    assert reader.history(until=first.serial, backwards=False) == ["a"]


def test_a_single_message_is_found_while_it_is_held(reader: Reader) -> None:
    record = reader.logs("a", "b")
    assert data_of(reader.past(calls.OneMessage(channel="c", serial=message_serial(serial(record), 1)))) == ["b"]
    elsewhere = serial(reader.logs("x", channel="d"))
    for absent in ["nonsense", message_serial(serial(record), 2), message_serial(elsewhere, 0)]:
        assert reader.refused(calls.OneMessage(channel="c", serial=absent)) == 40400
    reader.core.tick(130.0)
    assert reader.refused(calls.OneMessage(channel="c", serial=message_serial(serial(record), 1))) == 40400


def test_rewind_is_the_newest_by_count_and_by_age(reader: Reader) -> None:
    now = reader.core.now_ms
    for number in range(5):
        reader.logs(str(number), at=now - (4 - number) * 10_000)
    found = reader.past(calls.Rewind(channel="c", limit=2))
    assert (data_of(found), found.cursor is not None) == (["4", "3"], True)
    found = reader.past(calls.Rewind(channel="c", limit=100, period_ms=20_000))
    assert (data_of(found), found.cursor) == (["4", "3", "2"], None)


@pytest.mark.parametrize(
    ("capability", "call", "allowed"),
    [
        ({"c": ["history"]}, history(), True),
        ({"c": ["subscribe", "publish"]}, history(), False),
        ({"d": ["history"]}, history(), False),
        ({"c": ["history"]}, calls.Rewind(channel="c", limit=1), False),
        ({"c": ["subscribe"]}, calls.Rewind(channel="c", limit=1), True),
        ({"*": ["*"], "[*]*": ["*"]}, history(channel="[meta]c"), False),
    ],
)
def test_the_grant_says_what_may_be_read(reader: Reader, capability: dict[str, list[str]], call: calls.Read, allowed: bool) -> None:
    core = reader.core
    admitted = core.admitted(token(**{"x-ably-capability": json.dumps(capability)}))
    req = reader.asks(call, session=admitted.session)
    core.answer_ends()
    core.turns()
    answer = core.answer(req)
    assert isinstance(answer, Page if allowed else Refused)


@pytest.mark.parametrize("body", [b"", b"{}", b"\xff", b'{"channel":"c"}', b'{"channel":1,"limit":1}', b'{"channel":"c","limit":"x"}'])
def test_a_body_of_another_shape_is_no_call(reader: Reader, body: bytes) -> None:
    for what in (calls.HISTORY, calls.REWIND):
        req = reader.core.req()
        reader.core.edge_sends(Fetch(req, reader.session, what, body))
        assert reader.core.answer(req).error.code == 40400


@pytest.mark.parametrize("limit", [0, -1, -(10**30)])
def test_an_edge_cannot_ask_for_less_than_nothing(reader: Reader, limit: int) -> None:
    reader.logs("a", "b")
    assert reader.refused(history(limit=limit)) == reader.refused(calls.Rewind(channel="c", limit=limit)) == 40003
    assert reader.history(limit=10**30, start=-(10**30), end=10**30) == ["b", "a"]


def test_without_a_grant_on_this_link_nothing_is_read(reader: Reader) -> None:
    reader.core.edge_up(2, "spiffe://test/edge/eu/other", "boot-2")
    req = reader.asks(history(), link=2)
    assert reader.core.answer(req).error.code == 40101
    assert reader.core.take(AskEnd) == []


def test_a_page_is_bounded_in_bytes_and_its_cursor_goes_on() -> None:
    reader = Reader(read_bytes=3_000)
    for number in range(7):
        reader.logs(str(number) * 1_000)
    sizes, cursor = [], None
    while True:
        past = reader.past(history(cursor=cursor))
        sizes.append(len(past.items))
        cursor = past.cursor
        if cursor is None:
            break
    assert sizes == [2, 2, 2, 1]


def test_a_long_search_takes_turns_and_ends_with_a_cursor() -> None:
    reader = Reader(read_turn_records=10, read_records=50)
    now = reader.core.now_ms
    reader.logs("wanted", at=now - 60_000)
    for number in range(120):
        reader.logs(str(number), at=now)
    req = reader.asks(history(end=now - 1))
    reader.core.answer_ends()
    for _ in range(3):
        reader.core.tick()
    assert reader.core.sent() == []
    reader.core.turns()
    past = calls.decode_past(reader.core.answer(req).body)
    assert past is not None
    assert (past.items, past.cursor is not None) == ([], True)
    past = reader.past(history(end=now - 1, cursor=past.cursor))
    assert data_of(reader.past(history(end=now - 1, cursor=past.cursor))) == ["wanted"]


def test_pages_for_one_link_leave_no_faster_than_their_rate() -> None:
    reader = Reader(read_bytes_per_s=10_000)
    reader.logs("x" * 9_000)
    reqs = [reader.asks(history()) for _ in range(4)]
    reader.core.answer_ends()
    reader.core.turns()
    assert len(reader.core.sent()) == 2
    due = reader.core.node.next_deadline()
    assert due is not None
    assert 0.5 < due - reader.core.now < 1.5
    reader.core.tick(due - reader.core.now + 0.01)
    reader.core.turns()
    assert [frame.req for frame in reader.core.sent()] == [reqs[2]]


def test_too_many_reads_of_one_link_are_refused_and_another_links_are_not() -> None:
    reader = Reader(link_reads=2)
    for _ in range(2):
        reader.asks(history())
    assert reader.core.answer(reader.asks(history())).error.code == 42910
    reader.core.edge_up(2, "spiffe://test/edge/eu/other", "boot-2")
    session = reader.core.admitted(link=2).session
    req = reader.asks(history(), session=session, link=2)
    reader.core.answer_ends()
    reader.core.turns()
    assert isinstance(reader.core.answer(req), Page)
    assert len(reader.core.sent()) == 2
    assert isinstance(reader.reads(history()), Page), "answered reads make room"


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_pages_add_up_to_the_whole_while_messages_arrive(data: st.DataObject) -> None:
    """However a history is cut, and whatever arrives between its pages, it is what it was at the first."""
    reader = Reader(read_records=data.draw(st.integers(1, 30)), read_turn_records=data.draw(st.integers(1, 8)))
    written: list[str] = []

    def publish() -> None:
        for _ in range(data.draw(st.integers(0, 4))):
            names = [f"{len(written) + n}" for n in range(data.draw(st.integers(1, 4)))]
            # Cores' clocks differ a little: timestamps are not in log order.
            reader.logs(*names, at=reader.core.now_ms + data.draw(st.integers(-900, 900)))
            written.extend(names)
            reader.logs("elsewhere", channel="d")

    for _ in range(4):
        publish()
    backwards, limit = data.draw(st.booleans()), data.draw(st.integers(1, 6))
    whole = list(reversed(written)) if backwards else list(written)
    found: list[str] = []
    past = reader.past(history(limit=limit, backwards=backwards))
    until = past.serial
    while True:
        page = data_of(past, backwards)
        assert len(page) <= limit
        found += page
        if past.cursor is None:
            break
        publish()
        past = reader.past(history(limit=limit, backwards=backwards, until=until, cursor=past.cursor))
    assert found == whole

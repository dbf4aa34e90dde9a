"""What waits until everything acknowledged before has been read."""

from __future__ import annotations

import pytest

from core.barriers import Barriers
from core.effects import AskEnd, Effect
from core.events import EndOffset, Tailed
from relay.link.frames import Barrier, Open, Opened, Reached
from relay.model.limits import CoreLimits
from relay.model.serials import Serial
from tests.unit.core.dialogue import Dialogue


class Asked:
    def __init__(self, **limits: int) -> None:
        self.effects: list[Effect] = []
        self.let_through: list[str] = []
        self._last = 0
        self.barriers = Barriers(CoreLimits(**limits), emit=self.effects.append, number=self.number)

    def number(self) -> int:
        self._last += 1
        return self._last

    def wait(self, name: str, now: float = 0.0) -> None:
        self.barriers.wait(0, lambda: self.let_through.append(name), now)

    def asks(self) -> list[int]:
        found = [effect.ask for effect in self.effects if isinstance(effect, AskEnd)]
        self.effects.clear()
        return found


@pytest.fixture
def asked() -> Asked:
    return Asked()


def test_who_comes_while_a_question_is_under_way_waits_for_the_next(asked: Asked) -> None:
    asked.wait("first")
    asked.wait("second")
    asked.wait("third")
    (one,) = asked.asks()
    assert asked.barriers.ended(one, 0, 7, 7, 0.0)
    assert asked.let_through == ["first"]
    (two,) = asked.asks()
    assert not asked.barriers.ended(one, 0, 7, 7, 0.0)
    asked.barriers.ended(two, 0, 9, 7, 0.0)
    asked.barriers.read(0, 8)
    assert asked.let_through == ["first"]
    asked.barriers.read(0, 9)
    assert asked.let_through == ["first", "second", "third"]
    assert len(asked.barriers) == 0
    assert asked.barriers.overdue == 0


def test_nobody_waits_for_ever(asked: Asked) -> None:
    asked.wait("no answer")
    (one,) = asked.asks()
    asked.barriers.ended(one, 0, None, 0, 0.0)
    asked.wait("hangs")
    asked.wait("behind it")
    asked.asks()
    asked.barriers.sweep(10.0)
    (three,) = asked.asks()
    asked.barriers.ended(three, 0, 5, 0, 10.0)
    assert asked.let_through == ["no answer", "hangs"]
    asked.barriers.sweep(20.0)
    assert asked.let_through == ["no answer", "hangs", "behind it"]
    assert asked.barriers.overdue == 3


def test_one_too_many_is_let_through() -> None:
    asked = Asked(barrier_waiters=1)
    asked.wait("a")
    asked.wait("b")
    assert asked.let_through == ["b"]


def test_a_channel_opens_where_the_core_was_and_is_sent_what_other_cores_had_acknowledged_first() -> None:
    core = Dialogue()
    core.edge_up()
    session = core.admitted().session
    core.sent()
    record = core.record("news")
    req = core.req()
    core.edge_sends(Open(req, "shop", "news", session))
    core.answer_ends()
    assert core.sent() == [], "the tail has not read the record"
    core.happens(Tailed([record]))
    sent, opened = core.sent()
    assert (sent.ref, sent.offset) == (req, record.offset)
    assert isinstance(opened, Opened)
    assert opened.serial == Serial(record.stream, record.partition, record.offset - 1).text


def test_a_barrier_on_an_open_channel_is_answered_after_its_records() -> None:
    core = Dialogue()
    core.edge_up()
    channel = core.open("news", core.admitted().session)
    core.sent()
    record = core.record("news")
    core.edge_sends(Barrier(99, channel))
    (ask,) = core.take(AskEnd)
    core.happens(EndOffset(ask.ask, ask.partition, core.ends[ask.partition]))
    assert core.sent() == []
    core.happens(Tailed([record]))
    frames = core.sent()
    assert [type(frame).__name__ for frame in frames] == ["Record", "Reached"]
    assert frames[-1] == Reached(99)
    core.edge_sends(Barrier(100, 12345))
    assert core.sent() == [Reached(100)], "a channel that is not open has nothing to wait for"

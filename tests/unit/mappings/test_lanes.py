"""Lanes: whatever the log's producer does, a partition's records reach the log in order and none before the mark is missing."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, cast

from hypothesis import given
from hypothesis import strategies as st

from core.events import EdgeLost, Event, Overfull, Reported
from core.kafka.mapping_runner import LogAppends, _Entry, _Lane

PARTITIONS = 2


class Loop:
    """Callbacks in order; time does not pass."""

    def __init__(self) -> None:
        self._due: deque[tuple[Callable[..., None], tuple[Any, ...], Loop.Handle]] = deque()

    class Handle:
        cancelled = False

        def cancel(self) -> None:
            self.cancelled = True

    def call_soon(self, function: Callable[..., None], *arguments: Any) -> Loop.Handle:
        handle = Loop.Handle()
        self._due.append((function, arguments, handle))
        return handle

    def call_later(self, _delay: float, function: Callable[..., None], *arguments: Any) -> Loop.Handle:
        return self.call_soon(function, *arguments)

    def turn(self) -> None:
        for _ in range(len(self._due)):
            function, arguments, handle = self._due.popleft()
            if not handle.cancelled:
                function(*arguments)


class Producer:
    """As `LogProducer` behaves: what is un-reported in a partition fails as a whole, and its written part is a prefix."""

    def __init__(self) -> None:
        self.refused = 0
        self.refusing = False
        self.log: list[str] = []
        self.unreported: list[list[tuple[int, str]]] = [[] for _ in range(PARTITIONS)]
        self.deliver: Callable[[list[Event]], None] = lambda events: None

    def append(self, ticket: int, partition: int, key: bytes, value: bytes, kind: int, id: str) -> None:
        if self.refusing:
            self.refused += 1
            self.deliver([Overfull(ticket, "partition budget")])
        else:
            self.unreported[partition].append((ticket, id))

    def report(self, partition: int, count: int) -> None:
        run, self.unreported[partition] = self.unreported[partition][:count], self.unreported[partition][count:]
        for ticket, id in run:
            self.log.append(id)
            self.deliver([Reported(ticket, partition, len(self.log) - 1)])

    def fail(self, partition: int, written: int) -> None:
        run, self.unreported[partition] = self.unreported[partition], []
        self.log += [id for _, id in run[:written]]
        self.deliver([Reported(ticket, partition, None) for ticket, _ in run])


def entries(start: int, count: int, skipped: set[int]) -> list[_Entry]:
    made = []
    for offset in range(start, start + count):
        key = b"app:" + str(offset % 3).encode()  # three channels, over two partitions of the log
        append = None if offset in skipped else (key, b"body", f"m:t:0:{offset}")
        made.append(_Entry(offset, append, 1))
    return made


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(1, 5), st.just(0)),
        st.tuples(st.just("report"), st.integers(0, PARTITIONS - 1), st.integers(1, 6)),
        st.tuples(st.just("fail"), st.integers(0, PARTITIONS - 1), st.integers(0, 4)),
        st.tuples(st.just("refuse"), st.integers(0, 1), st.just(0)),
        st.tuples(st.just("turn"), st.just(0), st.just(0)),
    ),
    max_size=40,
)


@given(STEPS, st.sets(st.integers(0, 60)))
def test_order_and_mark_hold_whatever_the_producer_does(steps: list[tuple[str, int, int]], skipped: set[int]) -> None:
    loop, producer, appends = Loop(), Producer(), LogAppends(PARTITIONS)
    producer.deliver = appends.sort(lambda events: None)
    appends.use(producer)
    lane = _Lane(cast(asyncio.AbstractEventLoop, loop), appends, 0)
    offset = 0

    def check() -> None:
        there = set(producer.log)
        assert all(f"m:t:0:{before}" in there for before in range(lane.mark) if before not in skipped)
        for channel in range(3):
            seen = [int(id.rpartition(":")[2]) for id in dict.fromkeys(producer.log) if int(id.rpartition(":")[2]) % 3 == channel]
            assert seen == sorted(seen), "first occurrences of a channel are out of order"

    for step, a, b in steps:
        if step == "add":
            lane.add(entries(offset, a, skipped))
            offset += a
        elif step == "report":
            producer.report(a, b)
        elif step == "fail":
            producer.fail(a, b)
        elif step == "refuse":
            producer.refusing = bool(a)
        else:
            loop.turn()
        check()
    producer.refusing = False
    for _ in range(4 * offset + 4):
        loop.turn()
        for partition in range(PARTITIONS):
            producer.report(partition, 1_000)
    check()
    assert lane.mark == offset
    assert lane.finished_records == lane.finished_bytes == offset


def test_a_closed_lane_appends_nothing_more_and_still_counts_answers() -> None:
    loop, producer, appends = Loop(), Producer(), LogAppends(PARTITIONS)
    producer.deliver = appends.sort(lambda events: None)
    appends.use(producer)
    lane = _Lane(cast(asyncio.AbstractEventLoop, loop), appends, 0)
    lane.add(entries(0, 3, set()))
    producer.refusing = True
    lane.add(entries(3, 3, set()))
    lane.close()
    assert not lane.settled
    producer.refusing = False
    for _ in range(3):
        loop.turn()
        for partition in range(PARTITIONS):
            producer.report(partition, 10)
    lane.add(entries(6, 3, set()))
    assert lane.settled
    assert (lane.mark, len(producer.log)) == (3, 3)


def test_answers_of_the_node_are_passed_on() -> None:
    passed: list[Event] = []
    deliver = LogAppends(PARTITIONS).sort(passed.extend)
    mine: list[Event] = [Reported(-1, 0, 5), Overfull(-2, "x")]
    others: list[Event] = [Reported(1, 0, 5), Overfull(0, "x"), EdgeLost(1, "why")]
    deliver([*mine, *others])
    deliver(mine)
    assert passed == others

"""Lanes: whatever the log's producer does, a partition's records reach the log in order and none before the mark is missing."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, cast

from hypothesis import given
from hypothesis import strategies as st

from core.events import EdgeLost, Event, Overfull, Reported
from core.kafka.lanes import Entry, Lane, LogAppends, State
from core.kafka.topics import StreamInfo
from relay.model.channel import partition_of

PARTITIONS = 2
LOG = StreamInfo("abcdefgh", "tidegate.log", PARTITIONS)


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
        self.refusing: set[int] = set()
        self.logs: list[list[str]] = [[] for _ in range(PARTITIONS)]
        self.unreported: list[list[tuple[int, str]]] = [[] for _ in range(PARTITIONS)]
        self.deliver: Callable[[list[Event]], None] = lambda events: None

    def append(self, ticket: int, partition: int, key: bytes, value: bytes, kind: int, id: str) -> None:
        if partition in self.refusing:
            self.refused += 1
            self.deliver([Overfull(ticket, "partition budget")])
        else:
            self.unreported[partition].append((ticket, id))

    def report(self, partition: int, count: int) -> None:
        run, self.unreported[partition] = self.unreported[partition][:count], self.unreported[partition][count:]
        for ticket, id in run:
            self.logs[partition].append(id)
            self.deliver([Reported(ticket, partition, len(self.logs[partition]) - 1)])

    def fail(self, partition: int, written: int) -> None:
        run, self.unreported[partition] = self.unreported[partition], []
        self.logs[partition] += [id for _, id in run[:written]]
        self.deliver([Reported(ticket, partition, None) for ticket, _ in run])


KEYS = [b"app:0", b"app:4", b"app:1"]
"""Of three channels, over both partitions of the log."""


def entries(start: int, count: int, skipped: set[int], dead: frozenset[int] = frozenset()) -> list[Entry]:
    made = []
    for offset in range(start, start + count):
        if offset in dead:
            made.append(Entry(offset, None, 1, State.DEAD))
        else:
            made.append(Entry(offset, None if offset in skipped else (KEYS[offset % 3], b"body", f"m:t:0:{offset}"), 1))
    return made


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(1, 5), st.just(0)),
        st.tuples(st.just("report"), st.integers(0, PARTITIONS - 1), st.integers(1, 6)),
        st.tuples(st.just("fail"), st.integers(0, PARTITIONS - 1), st.integers(0, 4)),
        st.tuples(st.just("refuse"), st.integers(0, PARTITIONS - 1), st.integers(0, 1)),
        st.tuples(st.just("bury"), st.integers(0, 3), st.just(0)),
        st.tuples(st.just("turn"), st.just(0), st.just(0)),
    ),
    max_size=40,
)


def test_the_channels_of_these_tests_lie_in_both_partitions() -> None:
    assert {partition_of(key, PARTITIONS) for key in KEYS} == {0, 1}


@given(STEPS, st.sets(st.integers(0, 60)), st.frozensets(st.integers(0, 60), max_size=6))
def test_order_mark_and_floors_hold_whatever_the_producer_does(
    steps: list[tuple[str, int, int]], skipped: set[int], dead: frozenset[int]
) -> None:
    """Rows M5.1 and M6.1: order per channel, and a commit that says enough for whoever goes on from it."""
    loop, producer, appends = Loop(), Producer(), LogAppends(LOG)
    producer.deliver = appends.sort(lambda events: None)
    appends.use(producer)
    lane = Lane(cast(asyncio.AbstractEventLoop, loop), appends, 0)
    offset = 0
    unburied: list[Entry] = []
    buried: set[int] = set()

    def check() -> None:
        there = {id for log in producer.logs for id in log}
        for before in range(lane.mark):
            assert before in buried if before in dead else before in skipped or f"m:t:0:{before}" in there
        for log in producer.logs:
            for channel in range(3):
                seen = [number for number in (int(id.rpartition(":")[2]) for id in dict.fromkeys(log)) if number % 3 == channel]
                assert seen == sorted(seen), "first occurrences of a channel are out of order"
        lane.snapshot()
        assert lane.position is not None
        for log, floor in zip(producer.logs, lane.position.floors, strict=True):
            # Whoever looks at the log from the floors finds all that is there and not behind the mark
            assert all(int(id.rpartition(":")[2]) < lane.position.mark for id in log[:floor])

    def more(count: int) -> None:
        nonlocal offset
        made = entries(offset, count, skipped, dead)
        unburied.extend(entry for entry in made if entry.state is State.DEAD)
        lane.add(made)
        offset += count

    def bury(index: int) -> None:
        if index < len(unburied):
            entry = unburied.pop(index)
            buried.add(entry.offset)
            lane.buried(entry)

    for step, a, b in steps:
        if step == "add":
            more(a)
        elif step == "report":
            producer.report(a, b)
        elif step == "fail":
            producer.fail(a, b)
        elif step == "refuse":
            (producer.refusing.add if b else producer.refusing.discard)(a)
        elif step == "bury":
            bury(a)
        else:
            loop.turn()
        check()
    producer.refusing.clear()
    for _ in range(4 * offset + 4):
        loop.turn()
        for partition in range(PARTITIONS):
            producer.report(partition, 1_000)
        bury(0)
    check()
    assert lane.mark == offset
    assert lane.finished_records == lane.finished_bytes == offset


def test_a_full_partition_of_the_log_holds_up_no_other() -> None:
    """Row M5.2: different keys run beside each other."""
    loop, producer, appends = Loop(), Producer(), LogAppends(LOG)
    producer.deliver = appends.sort(lambda events: None)
    appends.use(producer)
    lane = Lane(cast(asyncio.AbstractEventLoop, loop), appends, 0)
    full = partition_of(KEYS[0], PARTITIONS)
    producer.refusing.add(full)
    lane.add(entries(0, 30, set()))
    for _ in range(5):
        loop.turn()
    others = [n for n in range(30) if partition_of(KEYS[n % 3], PARTITIONS) != full]
    assert [int(id.rpartition(":")[2]) for _, id in producer.unreported[1 - full]] == others
    assert lane.mark == 0


def test_nothing_is_appended_while_the_partition_may_be_anothers() -> None:
    loop, producer, appends = Loop(), Producer(), LogAppends(LOG)
    appends.use(producer)
    mine = False
    lane = Lane(cast(asyncio.AbstractEventLoop, loop), appends, 0, lambda: mine)
    lane.add(entries(0, 5, set()))
    for _ in range(5):
        loop.turn()
    assert producer.unreported == [[], []]
    mine = True
    loop.turn()
    assert sum(map(len, producer.unreported)) == 5


def test_a_closed_lane_appends_nothing_more_and_its_last_position_counts_every_answer() -> None:
    loop, producer, appends = Loop(), Producer(), LogAppends(LOG)
    producer.deliver = appends.sort(lambda events: None)
    appends.use(producer)
    lane = Lane(cast(asyncio.AbstractEventLoop, loop), appends, 0)
    lane.add(entries(0, 3, set()))
    producer.refusing = {0, 1}
    lane.add(entries(3, 3, set()))
    lane.close()
    assert not lane.final
    producer.refusing = set()
    for _ in range(3):
        loop.turn()
        for partition in range(PARTITIONS):
            producer.report(partition, 10)
    lane.add(entries(6, 3, set()))
    assert lane.final
    assert lane.position is not None
    assert (lane.position.mark, sum(map(len, producer.logs))) == (3, 3)


def test_answers_of_the_node_are_passed_on() -> None:
    passed: list[Event] = []
    deliver = LogAppends(LOG).sort(passed.extend)
    mine: list[Event] = [Reported(-1, 0, 5), Overfull(-2, "x")]
    others: list[Event] = [Reported(1, 0, 5), Overfull(0, "x"), EdgeLost(1, "why")]
    deliver([*mine, *others])
    deliver(mine)
    assert passed == others

"""Occupancy as events of the log: the last state always comes out, once, whoever owns the partition."""

from __future__ import annotations

from collections import Counter

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.fold import Fold
from core.log import LogRecord
from core.occupancy_log import REMEMBERED_MS, OccupancyBody, OccupancyLog, PartitionOccupancy, decode_body
from relay.model.limits import CoreLimits
from relay.model.message import Kind
from relay.model.occupancy import METRICS

KEY = b"shop:room"
START_MS = 1_800_000_000_000
EMPTY = (0,) * len(METRICS)


def counts(number: int) -> tuple[int, ...]:
    return (number,) * len(METRICS)


class World:
    """Some cores over one log of one partition."""

    def __init__(self, cores: int = 1, **limits: float) -> None:
        self.now = 100.0
        self.limits = CoreLimits(**limits)  # type: ignore[arg-type]
        self.counters: Counter[str] = Counter()
        self.log: list[LogRecord] = []
        self.totals: dict[bytes, tuple[int, ...]] = {}
        self.cores = [self.core() for _ in range(cores)]
        self.folds = [Fold(10_000, b"k" * 16) for _ in range(cores)]
        self.read_to = [0] * cores
        self.owned = [frozenset[int]()] * cores
        self.lossy = False

    def core(self) -> OccupancyLog:
        made = OccupancyLog(self.limits, self.counters, append=self._append, totals=lambda key: self.totals.get(key, EMPTY))
        made.want(["shop"], [], self.now)
        return made

    @property
    def now_ms(self) -> int:
        return START_MS + round(self.now * 1000)

    def _append(self, partition: int, key: bytes, value: bytes, publish_id: str) -> None:
        if not self.lossy:
            self.log.append(LogRecord("s", partition, len(self.log), self.now_ms, key, value, Kind.OCCUPANCY, publish_id))

    def own(self, *numbers: int) -> None:
        for n, core in enumerate(self.cores):
            self.owned[n] = frozenset({0}) if n in numbers else frozenset()
            core.own(self.owned[n], self.occupied(), self.now)

    def occupied(self) -> list[tuple[int, bytes]]:
        return [(0, key) for key, found in self.totals.items() if found[0]]

    def crash(self, n: int) -> None:
        """And at once another one in its place, which is given the state and reads the rest of the log."""
        view = PartitionOccupancy()
        view.journal = {}
        fold = Fold(10_000, b"k" * 16)
        half = len(self.log) // 2
        for record in self.log[:half]:
            if fold.see(0, record.key, record.id, record.timestamp, record.offset) is None:
                view.apply(record)
        core = self.cores[n] = self.core()
        core.restore(0, {key: value for key, value in view.journal.items() if value is not None})
        self.folds[n], self.read_to[n] = Fold(10_000, b"k" * 16), 0
        core.own(self.owned[n], self.occupied(), self.now)

    def becomes(self, number: int | tuple[int, ...], key: bytes = KEY) -> None:
        self.totals[key] = number if isinstance(number, tuple) else counts(number)
        for core in self.cores:
            core.changed(0, key, self.now, self.now_ms)

    def settle(self) -> None:
        while any(at < len(self.log) for at in self.read_to):
            for n in range(len(self.cores)):
                self.read(n)

    def read(self, n: int) -> None:
        for record in self.log[self.read_to[n] :]:
            self.read_to[n] += 1
            if self.folds[n].see(0, record.key, record.id, record.timestamp, record.offset) is None:
                self.cores[n].read(record, self.now, self.now_ms)

    def wait(self, seconds: float) -> None:
        self.settle()
        until = self.now + seconds
        while self.now < until:
            self.now = min(until, self.now + 0.25)
            for core in self.cores:
                core.sweep(self.now, self.now_ms)
            self.settle()

    def said(self, key: bytes = KEY) -> list[tuple[float, int]]:
        """What counts: when it was appended, and how many connections."""
        fold, view, found = Fold(10_000, b"k" * 16), PartitionOccupancy(), []
        for record in self.log:
            if fold.see(0, record.key, record.id, record.timestamp, record.offset) is None:
                body = view.apply(record)
                if body is not None and record.key == key:
                    found.append(((record.timestamp - START_MS) / 1000 - 100.0, body.counts[0]))
        return found


def test_an_app_whose_rule_is_gone_is_left_alone_with_what_is_on_its_way_and_looked_at_anew_when_it_is_back() -> None:
    world = World()
    world.own(0)
    world.becomes(1)
    world.cores[0].want([], world.occupied(), world.now)
    world.wait(60.0)
    assert [number for _, number in world.said()] == [1], "and not once more because nobody has taken note of it"
    assert len(world.cores[0]) == 0
    world.becomes(5)
    world.wait(10.0)
    assert len(world.log) == 1
    world.cores[0].want(["shop"], world.occupied(), world.now)
    world.wait(10.0)
    assert [number for _, number in world.said()] == [1, 5]


def test_zero_and_not_zero_at_once_others_once_a_second_and_the_last_state_always() -> None:
    world = World()
    world.own(0)
    world.becomes(1)
    world.settle()
    for number in (2, 3, 4, 5):
        world.wait(0.1)
        world.becomes(number)
    world.wait(3)
    world.becomes(6)
    world.becomes(0)
    world.wait(3)
    said = world.said()
    assert [number for _, number in said] == [1, 5, 6, 0]
    assert 1.0 <= said[1][0] - said[0][0] <= 1.5
    assert said[2][0] == said[3][0] == pytest.approx(3.4)
    world.wait(3)
    assert len(world.cores[0]) == 0


def test_what_does_not_change_is_not_said() -> None:
    world = World()
    world.own(0)
    for _ in range(5):
        world.becomes(3)
        world.wait(2)
    assert world.said() == [(0.0, 3)]


def test_apps_without_a_rule_and_metachannels_are_not_counted() -> None:
    world = World()
    world.own(0)
    world.becomes(1, b"other:room")
    world.becomes(1, b"shop:[meta]channel.lifecycle")
    world.wait(5)
    assert world.log == []
    world.cores[0].want(["shop", "other"], world.occupied(), world.now)
    world.wait(5)
    assert [record.key for record in world.log] == [b"other:room"]


def test_a_new_owner_says_what_the_former_left_unsaid_and_nothing_else() -> None:
    world = World(2)
    world.own(0)
    world.becomes(1)
    world.becomes(4, b"shop:other")
    world.wait(2)
    world.own()
    world.becomes(0)
    world.becomes(7, b"shop:new")
    world.wait(5)
    assert [number for _, number in world.said()] == [1]
    world.own(1)
    world.wait(5)
    assert [number for _, number in world.said()] == [1, 0]
    assert [number for _, number in world.said(b"shop:new")] == [7]
    assert [number for _, number in world.said(b"shop:other")] == [4]


def test_an_event_that_got_lost_is_appended_again_as_things_are_by_then() -> None:
    world = World()
    world.own(0)
    world.lossy = True
    world.becomes(1)
    world.wait(5)
    world.lossy = False
    world.becomes(2)
    world.wait(7)
    assert [number for _, number in world.said()] == [2]


def test_numbers_of_empty_channels_are_forgotten_only_when_no_repetition_can_be_meant() -> None:
    world = World()
    world.own(0)
    for _ in range(2):
        world.becomes(1)
        world.wait(2)
        world.becomes(0)
        world.wait(REMEMBERED_MS / 1000 + 5)
    assert [record.id for record in world.log] == ["o:room:1", "o:room:2"] * 2
    assert [number for _, number in world.said()] == [1, 0]  # of one fold, whose view forgets nothing


def test_above_the_bound_a_channel_is_said_when_it_changes_again() -> None:
    world = World(occupancy_events=2)
    world.own(0)
    for number in range(3):
        world.becomes(1, f"shop:{number}".encode())
    assert world.counters["occupancy.unsaid"] == 1
    world.wait(3)
    world.becomes(2, b"shop:2")
    world.wait(2)
    assert [number for _, number in world.said(b"shop:2")] == [2]


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"\xc1",
        msgspec.msgpack.encode(OccupancyBody("x", 1, 0, EMPTY)),
        msgspec.msgpack.encode(OccupancyBody("x", 1, 1, (1,))),
        msgspec.msgpack.encode({"id": "x", "timestamp": 1, "n": 1, "counts": [-1] * len(METRICS)}),
    ],
)
def test_what_no_core_has_written_changes_nothing(value: bytes) -> None:
    assert decode_body(value) is None
    view = PartitionOccupancy()
    assert view.apply(LogRecord("s", 0, 0, START_MS, KEY, value, Kind.OCCUPANCY, "x")) is None
    assert (view.channels, view.unreadable) == ({}, 1)


STEP = st.one_of(
    st.tuples(st.just("becomes"), st.integers(0, 3)),
    st.tuples(st.just("own"), st.integers(0, 7)),
    st.tuples(st.just("read"), st.integers(0, 2)),
    st.tuples(st.just("crash"), st.integers(0, 2)),
    st.tuples(st.just("wait"), st.integers(1, 12)),
    st.tuples(st.just("lossy"), st.integers(0, 1)),
)


@given(st.lists(STEP, max_size=40))
def test_the_last_state_comes_out_whoever_owns_and_whoever_dies(steps: list[tuple[str, int]]) -> None:
    world = World(3)
    world.own(0)
    for what, number in steps:
        match what:
            case "becomes":
                world.becomes(number)
            case "own":
                world.own(*(n for n in range(3) if number >> n & 1))
            case "read":
                world.read(number)
            case "crash":
                world.crash(number)
            case "lossy":
                world.lossy = bool(number)
            case _:
                world.wait(number)
    world.lossy = False
    world.own(1)
    world.wait(25)
    said = [number for _, number in world.said()]
    assert (said or [0])[-1] == world.totals.get(KEY, EMPTY)[0]
    written = len(world.log)
    world.wait(25)
    assert len(world.log) == written

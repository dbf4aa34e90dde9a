"""When channels open and close: the fold, and the owner that appends."""

from __future__ import annotations

from collections import Counter

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.fold import Fold
from core.lifecycle import CLOSED, OPENED, REMEMBERED_MS, Lifecycle, LifecycleBody, PartitionLifecycle
from core.log import LogRecord
from relay.model.limits import CoreLimits
from relay.model.message import Kind

KEY = b"shop:room"
START_MS = 1_800_000_000_000


class World:
    """Some cores over one log of one partition; every one believes to own it if it was told so."""

    def __init__(self, cores: int = 1, **limits: int) -> None:
        self.now = 100.0
        self.limits = CoreLimits(**limits)
        self.log: list[LogRecord] = []
        self.counts: Counter[bytes] = Counter()
        self.counters: Counter[str] = Counter()
        self.cores = [self.core() for _ in range(cores)]
        self.folds = [Fold(10_000, b"k" * 16) for _ in range(cores)]
        self.read_to = [0] * cores
        self.happened: list[tuple[str, int]] = []

    def core(self) -> Lifecycle:
        return Lifecycle(self.limits, self.counters, append=self._append, connections=lambda key: self.counts[key])

    @property
    def now_ms(self) -> int:
        return START_MS + round(self.now * 1000)

    def _append(self, partition: int, key: bytes, value: bytes, publish_id: str) -> None:
        self.log.append(LogRecord("s", partition, len(self.log), self.now_ms, key, value, Kind.LIFECYCLE, publish_id))

    def own(self, *numbers: int) -> None:
        for n, core in enumerate(self.cores):
            owned = frozenset({0}) if n in numbers else frozenset()
            core.own(owned, [(0, key) for key, count in self.counts.items() if count], self.now, self.now_ms)

    def publish(self, key: bytes = KEY) -> None:
        self.log.append(LogRecord("s", 0, len(self.log), self.now_ms, key, b"", Kind.MESSAGE, f"p{len(self.log)}"))

    def attach(self, count: int, key: bytes = KEY) -> None:
        """Every core learns how many there are now."""
        self.counts[key] = count
        for core in self.cores:
            core.active(0, key, self.now, self.now_ms)

    def read(self, n: int, most: int = 1_000) -> None:
        for record in self.log[self.read_to[n] : self.read_to[n] + most]:
            self.read_to[n] += 1
            core = self.cores[n]
            if self.folds[n].see(0, record.key, record.id, record.timestamp, record.offset) is not None:
                continue
            if record.kind != Kind.LIFECYCLE:
                core.published(0, record.key, self.now, self.now_ms)
            elif (body := core.read(record, self.now, self.now_ms)) is not None and n == 0:
                self.happened.append((body.name, body.n))

    def wait(self, seconds: float) -> None:
        until = self.now + seconds
        while self.now < until:
            self.now = min(until, self.now + 1.0)
            for core in self.cores:
                core.sweep(self.now, self.now_ms)
            self.settle()

    def settle(self) -> None:
        while any(at < len(self.log) for at in self.read_to):
            for n in range(len(self.cores)):
                self.read(n)


def test_a_channel_opens_with_the_first_attachment_and_closes_a_minute_after_the_last() -> None:
    world = World()
    world.own(0)
    world.attach(1)
    assert world.happened == []  # it has not been read back
    world.settle()
    assert world.happened == [(OPENED, 1)]
    world.wait(300)
    world.attach(0)
    world.wait(58)
    assert world.happened == [(OPENED, 1)]
    world.wait(4)
    assert world.happened == [(OPENED, 1), (CLOSED, 1)]
    world.attach(2)
    world.settle()
    assert world.happened[2:] == [(OPENED, 2)]
    assert [record.id for record in world.log] == ["opened:room:1", "closed:room:1", "opened:room:2"]


def test_a_publish_opens_a_closed_channel_and_keeps_it_open() -> None:
    world = World()
    world.own(0)
    for _ in range(10):
        world.publish()
        world.wait(50)
    assert world.happened == [(OPENED, 1)]
    world.wait(70)
    assert world.happened == [(OPENED, 1), (CLOSED, 1)]


def test_who_does_not_own_the_partition_appends_nothing_and_knows_all_the_same() -> None:
    world = World(2)
    world.own(1)
    world.attach(1)
    world.publish()
    world.settle()
    assert len([record for record in world.log if record.kind == Kind.LIFECYCLE]) == 1
    assert all(core.views[0].is_open(KEY) for core in world.cores)


def test_two_owners_make_one_event() -> None:
    world = World(2)
    world.own(0, 1)
    world.attach(1)
    world.settle()
    world.attach(0)
    world.wait(70)
    assert world.happened == [(OPENED, 1), (CLOSED, 1)]
    assert [record.id for record in world.log] == ["opened:room:1"] * 2 + ["closed:room:1"] * 2


def test_a_new_owner_finds_what_the_former_left_undone() -> None:
    world = World(2)
    world.own(0)
    world.attach(1)
    world.settle()
    world.own()
    world.counts[KEY], world.counts[b"shop:new"] = 0, 1
    world.own(1)
    world.settle()
    assert world.happened == [(OPENED, 1), (OPENED, 1)]
    world.wait(70)
    assert world.happened[2:] == [(CLOSED, 1)]
    assert world.log[-1].key == KEY


def test_an_event_that_got_lost_is_appended_again() -> None:
    world = World()
    world.own(0)
    world.attach(1)
    world.log.clear()  # its fate was unknown, and it was not written
    world.wait(15)
    assert world.happened == [(OPENED, 1)]


def test_who_comes_while_the_end_is_on_its_way_opens_it_again() -> None:
    world = World()
    world.own(0)
    world.attach(1)
    world.settle()
    world.attach(0)
    world.now += 61
    world.cores[0].sweep(world.now, world.now_ms)
    assert world.log[-1].id == "closed:room:1"
    world.attach(1)
    world.settle()
    assert world.happened == [(OPENED, 1), (CLOSED, 1), (OPENED, 2)]


def test_numbers_are_forgotten_only_when_no_repetition_can_be_meant() -> None:
    world = World()
    world.own(0)
    world.publish()
    world.wait(70)
    world.wait(REMEMBERED_MS / 1000 + 10)
    assert len(world.cores[0]) == 0
    world.publish()
    world.settle()
    assert world.happened == [(OPENED, 1), (CLOSED, 1), (OPENED, 1)]


def test_above_the_bound_a_channel_is_in_use_without_events() -> None:
    world = World(lifecycle_channels=2, lifecycle_closed=1)
    world.own(0)
    for n in range(4):
        world.publish(f"shop:{n}".encode())
    world.wait(1)
    assert len(world.happened) == 2
    assert world.counters["lifecycle.full"] == 2
    world.wait(100)
    assert len(world.cores[0].views[0].channels) == 1


def lifecycle_record(offset: int, name: str, number: int, key: bytes = KEY, value: bytes | None = None) -> LogRecord:
    body = LifecycleBody(id="x", timestamp=1, name=name, n=number)
    return LogRecord("s", 0, offset, START_MS + offset, key, msgspec.msgpack.encode(body) if value is None else value, Kind.LIFECYCLE, "x")


def test_the_state_is_what_the_records_add_up_to_however_many_are_read_again() -> None:
    other = b"shop:other"
    steps = [
        (OPENED, 1, KEY),
        (CLOSED, 1, KEY),
        (OPENED, 2, KEY),
        (OPENED, 1, other),
        (CLOSED, 1, other),
        (OPENED, 2, other),
        (CLOSED, 2, other),
    ]
    log = [lifecycle_record(offset, name, number, key) for offset, (name, number, key) in enumerate(steps)]
    view = PartitionLifecycle()
    view.journal = {}
    for record in log:
        assert view.apply(record) is not None
    assert [(key, known.open, known.number) for key, known in view.channels.items()] == [(KEY, True, 2), (other, False, 2)]
    for start in range(len(log) + 1):
        restored = PartitionLifecycle()
        restored.restore({key: value for key, value in view.journal.items() if value is not None})
        for record in log[start:]:
            restored.apply(record)
        assert restored.channels == view.channels
    restored.journal = {}
    restored.forget(START_MS + 100)
    assert list(restored.channels) == [KEY]
    assert list(restored.journal.values()) == [None]


@pytest.mark.parametrize("value", [b"", b"\xc1", msgspec.msgpack.encode({"id": "x"}), msgspec.msgpack.encode([1])])
def test_what_no_core_has_written_changes_nothing(value: bytes) -> None:
    view = PartitionLifecycle()
    assert view.apply(lifecycle_record(0, OPENED, 1, value=value)) is None
    assert view.apply(lifecycle_record(1, "channel.burnt", 1)) is None
    assert view.apply(lifecycle_record(2, OPENED, 0)) is None
    assert not view.channels
    assert view.unreadable == 2


STEP = st.one_of(
    st.tuples(st.just("attach"), st.integers(0, 2)),
    st.tuples(st.just("publish"), st.just(0)),
    st.tuples(st.just("own"), st.integers(0, 7)),
    st.tuples(st.just("read"), st.integers(0, 2)),
    st.tuples(st.just("wait"), st.integers(1, 90)),
)


@given(st.lists(STEP, max_size=30))
def test_events_alternate_whoever_owns_and_every_core_agrees(steps: list[tuple[str, int]]) -> None:
    world = World(3)
    world.own(0)
    for what, number in steps:
        match what:
            case "attach":
                world.attach(number)
            case "publish":
                world.publish()
            case "own":  # any of them, or several, or none
                world.own(*[n for n in range(3) if number >> n & 1])
            case "read":
                world.read(number, 1)
            case "wait":
                world.wait(number)
    world.own(2)
    world.wait(200)
    assert world.happened == [((OPENED, CLOSED)[n % 2], n // 2 + 1) for n in range(len(world.happened))]
    assert world.cores[0].views.keys() == world.cores[2].views.keys()
    for core in world.cores:
        for partition, view in core.views.items():
            assert view.channels == world.cores[0].views[partition].channels
            assert view.is_open(KEY) == (world.counts[KEY] > 0)

"""What is shown on `[meta]channel.lifecycle`: each event once, however many cores believe to own it, and within bounds."""

from __future__ import annotations

import json
from collections import Counter

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from core.fold import Fold
from core.lifecycle import CLOSED, OPENED, LifecycleBody
from core.log import LogRecord
from core.metachannel import PREFIX, TIMELY_MS, Metachannel
from relay.model.limits import CoreLimits
from relay.model.message import Kind, RecordBody
from relay.model.occupancy import METRICS

START_MS = 1_800_000_000_000
CONNECTIONS = 7
"""The partition of the other metachannel."""
META = b"shop:[meta]channel.lifecycle"


class World:
    """Some cores over one log, whose records each of them reads when the test lets it."""

    def __init__(self, cores: int = 1, **limits: int) -> None:
        self.now = 100.0
        self.limits = CoreLimits(**limits)
        self.counters: Counter[str] = Counter()
        self.log: list[LogRecord] = []
        self.bodies: dict[str, LifecycleBody] = {}
        self.cores = [self.core() for _ in range(cores)]
        self.folds = [Fold(100_000, b"k" * 16) for _ in range(cores)]
        self.read_to = [0] * cores
        self.owned = [frozenset[int]()] * cores
        self.lossy = False

    def core(self) -> Metachannel:
        return Metachannel(
            self.limits,
            self.counters,
            append=self._append,
            counts=lambda key: range(len(METRICS)),
            partition=lambda app, channel: CONNECTIONS,
            region="eu",
        )

    @property
    def now_ms(self) -> int:
        return START_MS + round(self.now * 1000)

    def _append(self, app: str, channel: str, value: bytes, publish_id: str) -> bool:
        if app != "shop":
            return False
        if not self.lossy:
            key = f"{app}:{channel}".encode()
            self.log.append(LogRecord("s", 0, len(self.log), self.now_ms, key, value, Kind.MESSAGE, publish_id))
        return True

    def happens(self, name: str, number: int, *, key: bytes = b"shop:room", partition: int = 1) -> None:
        body = LifecycleBody(id=f"{name}:{number}", timestamp=self.now_ms, name=name, n=number)
        record = LogRecord(
            "s", partition, len(self.log), self.now_ms, key, msgspec.msgpack.encode(body), Kind.LIFECYCLE, f"e{len(self.log)}"
        )
        self.bodies[record.id] = body
        self.log.append(record)

    def read(self, n: int, most: int = 10_000) -> None:
        for record in self.log[self.read_to[n] : self.read_to[n] + most]:
            self.read_to[n] += 1
            if self.folds[n].see(record.partition, record.key, record.id, record.timestamp, record.offset) is not None:
                continue
            if record.kind == Kind.LIFECYCLE:
                self.cores[n].happened(record, self.bodies[record.id], self.now_ms)
            else:
                self.cores[n].shown(record.id)
        self.cores[n].turn(self.now)

    def own(self, n: int, *partitions: int) -> None:
        self.owned[n] = frozenset(partitions)
        self.cores[n].own(self.owned[n])

    def crash(self, n: int) -> None:
        """And at once another one in its place, which reads the log from its beginning."""
        self.cores[n], self.read_to[n], self.folds[n] = self.core(), 0, Fold(100_000, b"k" * 16)
        self.cores[n].own(self.owned[n])

    def wait(self, seconds: float) -> None:
        until = self.now + seconds
        while self.now < until:
            self.now = min(until, self.now + 1.0)
            for n in range(len(self.cores)):
                self.cores[n].sweep(self.now, self.now_ms)
                self.read(n)

    def shown(self) -> list[tuple[str, str, bool]]:
        """What a reader of the metachannel gets."""
        fold, found = Fold(100_000, b"k" * 16), []
        for record in self.log:
            if record.key == META and fold.see(0, record.key, record.id, record.timestamp, record.offset) is None:
                body = msgspec.msgpack.decode(record.value, type=RecordBody)
                assert record.id == PREFIX + body.id
                both = {str(message.name): json.loads(str(message.data)) for message in body.messages}
                assert all(message.encoding == "json" for message in body.messages)
                (name,) = both.keys() & {OPENED, CLOSED}
                assert list(both) == ([OPENED, "channel.region.active"] if name == OPENED else ["channel.region.inactive", CLOSED])
                about = both.pop(name)
                assert [*both.values()] == [about | {"region": "eu", "isGlobalMaster": True}]
                found.append((name, about["channelId"], about["status"]["isActive"]))
        return found


def test_the_owner_shows_what_happened() -> None:
    world = World(2)
    world.own(0, 1)
    world.happens(OPENED, 1)
    world.happens(CLOSED, 1)
    world.wait(3)
    assert world.shown() == [(OPENED, "room", True), (CLOSED, "room", False)]
    assert len(world.log) == 4
    assert not any(map(len, world.cores))


def test_what_was_not_written_is_appended_again_in_its_order() -> None:
    world = World()
    world.own(0, 1)
    world.lossy = True
    for number in range(1, 4):
        world.happens(OPENED, number, key=f"shop:{number}".encode())
    world.wait(5)
    world.lossy = False
    world.wait(10)
    assert [channel for _, channel, _ in world.shown()] == ["1", "2", "3"]


def test_a_message_that_is_read_before_its_event_has_shown_it() -> None:
    """They are in two partitions; a connection's are in two topics."""
    world = World(2)
    world.own(0, 1)
    world.happens(OPENED, 1)
    world.read(0)
    event, message = world.log
    world.cores[1].shown(message.id)
    world.cores[1].happened(event, world.bodies[event.id], world.now_ms)
    assert len(world.cores[1]) == 0
    world.own(1, 1)
    world.cores[1].turn(world.now)
    world.wait(TIMELY_MS / 1000 + 2)
    assert (len(world.log), world.counters["lifecycle.unshown"]) == (2, 0)


def test_of_messages_without_an_event_the_newest_are_remembered() -> None:
    core = World().core()
    for number in range(30_000):
        core.shown(f"{PREFIX}{number}")
    assert list(core._early) == [f"{PREFIX}{number}" for number in range(20_000, 30_000)]


def test_only_so_many_are_under_way() -> None:
    world = World(lifecycle_under_way=5)
    world.own(0, 1)
    for number in range(20):
        world.happens(OPENED, number, key=f"shop:{number}".encode())
    world.read(0, 20)
    assert len(world.log) == 25
    world.wait(5)
    assert [channel for _, channel, _ in world.shown()] == [str(number) for number in range(20)]


def test_above_the_bound_the_oldest_is_never_shown() -> None:
    world = World(lifecycle_unshown=3)
    for number in range(5):
        world.happens(OPENED, number, key=f"shop:{number}".encode())
    world.read(0)
    world.own(0, 1)
    world.wait(5)
    assert [channel for _, channel, _ in world.shown()] == ["2", "3", "4"]
    assert world.counters["lifecycle.unshown"] == 2


def test_what_is_too_old_is_not_shown_any_more() -> None:
    world = World(2)
    world.happens(OPENED, 1)
    world.read(0)
    world.wait(TIMELY_MS / 1000 + 2)
    world.crash(1)
    world.own(0, 1)
    world.own(1, 1)
    world.wait(5)
    assert (world.shown(), list(map(len, world.cores))) == ([], [0, 0])


def test_an_app_that_is_gone_has_no_metachannel() -> None:
    world = World()
    world.own(0, 1)
    world.happens(OPENED, 1, key=b"gone:room")
    world.wait(2)
    assert (world.shown(), len(world.cores[0])) == ([], 0)


STEP = st.one_of(
    st.tuples(st.just("happens"), st.integers(0, 3)),
    st.tuples(st.just("own"), st.integers(0, 7)),
    st.tuples(st.just("read"), st.integers(0, 2)),
    st.tuples(st.just("crash"), st.integers(0, 2)),
    st.tuples(st.just("wait"), st.integers(1, 12)),
)


@given(st.lists(STEP, max_size=40))
def test_each_event_once_whoever_owns_and_whoever_dies(steps: list[tuple[str, int]]) -> None:
    world = World(3)
    world.own(0, 1, 2)
    happened = []
    for what, number in steps:
        match what:
            case "happens":
                channel = f"c{len(happened)}"
                world.happens(OPENED, 1, key=f"shop:{channel}".encode(), partition=1 + number % 2)
                happened.append(channel)
            case "own":  # up to all three believe it
                for n in range(3):
                    world.own(n, *((1, 2) if number >> n & 1 else ()))
            case "read":
                world.read(number, 2)
            case "crash":
                world.crash(number)
            case _:
                world.wait(number)
    world.own(0, 1, 2)
    world.wait(25)
    if world.now - 100.0 < TIMELY_MS / 1000:
        assert sorted(channel for _, channel, _ in world.shown()) == sorted(happened)
    assert len({channel for _, channel, _ in world.shown()}) == len(world.shown())

"""An owner against a group, a log and a state in a script: what it takes, and in which order, when the group is put together anew."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from confluent_kafka import KafkaError, TopicPartition

from core import state
from core.fold import Fold
from core.kafka.config import REAL
from core.kafka.owner import _Run
from core.kafka.records import headers
from core.kafka.state_log import StateReader
from core.kafka.transactions import Refused
from core.ownership import PartitionState
from core.rules import RuleSet
from core.state import Checkpoint
from relay.model.limits import CoreLimits
from relay.model.message import Kind, Message, RecordBody

TOPIC, STREAM = "t.log", "stream00"


class FakeMessage:
    def __init__(self, partition: int, offset: int, error: KafkaError | None = None) -> None:
        self._partition, self._offset, self._error = partition, offset, error

    def partition(self) -> int:
        return self._partition

    def offset(self) -> int:
        return self._offset

    def error(self) -> KafkaError | None:
        return self._error

    def timestamp(self) -> tuple[int, int]:
        return 2, 1_000 + self._offset

    def headers(self) -> list[tuple[str, str | bytes | None]]:
        return headers(Kind.MESSAGE, f"s:{self._partition}:{self._offset}")

    def key(self) -> bytes:
        return b"app:room"

    def value(self) -> bytes:
        return msgspec.msgpack.encode(RecordBody(id=f"{self._offset}", timestamp=1, messages=[Message(data="x")]))


class Clock:
    """Time passes while somebody waits for a message."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def monotonic(self) -> float:
        return self.now

    def time_ns(self) -> int:
        return 10**18


class Consumer:
    """`script` is what each poll gives: a message, nothing, or something to be done."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.script: list[Any] = []
        self.batches: list[list[Any]] = []
        self.positions: dict[int, int] = {}
        self.assigned: list[TopicPartition] = []

    def poll(self, wait: float) -> Any:
        self.clock.now += wait
        if not self.script:
            return None
        each = self.script.pop(0)
        return each() if callable(each) else each

    def consume(self, _most: int, _wait: float) -> list[Any]:
        return self.batches.pop(0) if self.batches else []

    def committed(self, asked: list[TopicPartition], timeout: float) -> list[TopicPartition]:
        return [TopicPartition(TOPIC, at.partition, self.positions.get(at.partition, -1001), STREAM) for at in asked]

    def get_watermark_offsets(self, _at: TopicPartition, timeout: float) -> tuple[int, int]:
        return 0, 1_000

    def offsets_for_times(self, asked: list[TopicPartition], timeout: float) -> list[TopicPartition]:
        return [TopicPartition(at.topic, at.partition, 0) for at in asked]

    def incremental_assign(self, places: list[TopicPartition]) -> None:
        self.assigned += places

    def assign(self, _places: list[TopicPartition]) -> None: ...

    def close(self) -> None: ...

    def assignment(self) -> list[TopicPartition]:
        return self.assigned

    def pause(self, _places: list[TopicPartition]) -> None: ...

    def resume(self, _places: list[TopicPartition]) -> None: ...

    def consumer_group_metadata(self) -> None: ...


class Transactions:
    def __init__(self) -> None:
        self.refusals = 0
        self.written: list[tuple[int, int]] = []

    def write(self, outputs: list[Any], states: list[Any], offsets: list[TopicPartition], group: Callable[[], Any]) -> list[Any]:
        if self.refusals:
            self.refusals -= 1
            raise Refused(KafkaError(KafkaError.REBALANCE_IN_PROGRESS), final=False)
        self.written += [(at.partition, at.offset) for at in offsets]
        return outputs

    def poll(self) -> None: ...


class States:
    """What each read of the state gives, the last one again and again."""

    def __init__(self, *found: dict[int, PartitionState]) -> None:
        self.found = list(found)
        self.reads: list[list[int]] = []

    def read(self, partitions: Any, _fence: object) -> dict[int, PartitionState]:
        self.reads.append(list(partitions))
        found = self.found.pop(0) if len(self.found) > 1 else self.found[0]
        return {number: found[number] for number in partitions}


def at(offset: int) -> PartitionState:
    return PartitionState(Checkpoint(stream=STREAM, offset=offset, time=1_000 + offset, core="core-2"), {})


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("core.kafka.owner.time", clock)
    return clock


def make_run(clock: Clock, states: States) -> tuple[Any, Consumer, Transactions]:
    run: Any = object.__new__(_Run)
    consumer, transactions = Consumer(clock), Transactions()
    run._owner = SimpleNamespace(
        closing=threading.Event(), core="core-1", lost=0, records=0, duplicates=0, refused=0, states=0, commits=0, parked=(),
        rules=RuleSet([], site="core-1"), complain=lambda *_: None, own=lambda _: None, drop=lambda *_: None, wrote=lambda _: None,
        rules_since=lambda _: run._owner.rules, tell_given_up=lambda *_: None, tell_changes=lambda *_: None,
    )  # fmt: skip
    run._config = SimpleNamespace(capabilities=REAL)
    run._stream = SimpleNamespace(topic=TOPIC, stream=STREAM, partitions=4)
    run._limits = CoreLimits()
    run._consumer, run._transactions, run._states = consumer, transactions, states
    run._looks = Consumer(Clock())
    run._fold = Fold(10_000, b"x")
    run._owned, run._held = {}, []
    run._open_records = run._open_size = 0
    run._committed_at = run._swept_at = 0.0
    run._joined = False
    run._catch_up, run._member, run._fenced = None, None, Counter()
    return run, consumer, transactions


def seen(run: Any) -> list[tuple[int, int]]:
    """Every record that is taken from now on, in its order."""
    found: list[tuple[int, int]] = []
    see = run._fold.see

    def watch(number: int, key: bytes, publish_id: str, timestamp: int, offset: int) -> int | None:
        found.append((number, offset))
        return see(number, key, publish_id, timestamp, offset)

    run._fold.see = watch
    return found


def test_what_is_read_while_the_group_is_listened_to_comes_before_what_is_read_later(clock: Clock) -> None:
    """A second core joins while this one begins with the partitions of the first round: the rest of them comes while it listens."""
    run, consumer, transactions = make_run(clock, States({1: at(10), 2: at(10)}))
    run._assigned(consumer, [TopicPartition(TOPIC, 1)])
    order = seen(run)
    transactions.refusals = 1
    # The first poll finds a record of 1; its claim is refused, and while the group is listened to it gives 2, with the first records.
    consumer.script = [
        FakeMessage(1, 10),
        lambda: run._assigned(consumer, [TopicPartition(TOPIC, 2)]),
        *(FakeMessage(2, offset) for offset in (10, 11)),
    ]
    consumer.batches = [[FakeMessage(2, offset) for offset in (12, 13)]]
    run._read()
    run._read()
    assert [offset for number, offset in order if number == 2] == [10, 11, 12, 13]
    assert run._owner.records == 5
    assert run._owned[2].position == 14


def test_a_record_of_a_partition_that_went_and_came_back_while_the_group_was_listened_to_is_not_taken_twice(
    clock: Clock,
) -> None:
    run, consumer, transactions = make_run(clock, States({1: at(10), 2: at(10)}))
    run._assigned(consumer, [TopicPartition(TOPIC, 1)])
    order = seen(run)
    transactions.refusals = 1

    def comes_back() -> None:
        run._give_up([1])
        run._assigned(consumer, [TopicPartition(TOPIC, 1)])

    consumer.script = [FakeMessage(1, 10), comes_back]
    run._read()
    assert order == [], "the new assignment begins with its look-back"
    assert run._owned[1].position == 10


def test_a_transaction_that_ended_after_the_state_was_read_is_not_done_twice(clock: Clock) -> None:
    """Its records were still in the queue of a core that stood still: nothing was open in the state. The group's position waits for it."""
    states = States({1: at(10), 2: at(10)}, {1: at(10), 2: at(25)})
    run, consumer, _ = make_run(clock, states)
    consumer.positions = {1: 10, 2: 25}
    run._assigned(consumer, [TopicPartition(TOPIC, 1), TopicPartition(TOPIC, 2)])
    assert states.reads == [[1, 2], [2]]
    assert (run._owned[1].first, run._owned[2].first) == (10, 25)


def test_topics_are_not_looked_up_by_the_member_of_the_group(monkeypatch: pytest.MonkeyPatch) -> None:
    """Within a rebalance that ends the process, at the next callback."""
    roles: dict[int, str] = {}
    looked: list[Any] = []

    def opened(_config: object, role: str, *_: object, **__: object) -> Any:
        made = Consumer(Clock())
        roles[id(made)] = role
        return made

    monkeypatch.setattr("core.kafka.owner.open_consumer", opened)
    monkeypatch.setattr("core.kafka.owner.TargetTopics", lambda _config, client, **_: looked.append(client))
    monkeypatch.setattr("core.kafka.owner.Transactions", lambda *_, **__: None)
    owner = SimpleNamespace(
        config=SimpleNamespace(prefix="t"), stream=SimpleNamespace(stream=STREAM), limits=CoreLimits(), group="g", core="core-1",
        state_topic=SimpleNamespace(topic="t.state"), create_topics=False, closing=threading.Event(), within_topics=None,
        rules=RuleSet([], site="core-1"),
    )  # fmt: skip
    run = _Run(owner)  # type: ignore[arg-type]
    (client,) = looked
    assert client is not run._consumer
    assert roles[id(run._consumer)] == "owner"


# --- the state --------------------------------------------------------------------------------------------------------------------------


class StateMessage:
    def __init__(self, offset: int, value: bytes | None = None) -> None:
        self._offset, self._value = offset, value

    def partition(self) -> int:
        return 1

    def offset(self) -> int:
        return self._offset

    def error(self) -> KafkaError | None:
        return None if self._value is not None else KafkaError(KafkaError._PARTITION_EOF)

    def key(self) -> bytes:
        return state.CHECKPOINT

    def value(self) -> bytes | None:
        return self._value


@pytest.mark.parametrize(
    ("read_to", "fenced"), [(None, []), (6, ["core-2", "core-2"])], ids=["a broker that is slow", "an open transaction"]
)
def test_a_core_is_fenced_for_an_open_transaction_only(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, read_to: int | None, fenced: list[str]
) -> None:
    consumer = Consumer(clock)
    monkeypatch.setattr("core.kafka.state_log.time", clock)
    monkeypatch.setattr("core.kafka.state_log.open_consumer", lambda *_, **__: consumer)
    monkeypatch.setattr("core.kafka.state_log._ends", lambda *_: {1: 10})
    told: list[str] = []
    checkpoint = state.encode(Checkpoint(stream=STREAM, offset=7, core="core-2"))
    consumer.script = [StateMessage(5, checkpoint), *([] if read_to is None else [StateMessage(read_to)]), *[None] * 20, StateMessage(10)]
    found = StateReader(SimpleNamespace(), SimpleNamespace(topic="t.state"), SimpleNamespace(stream=STREAM)).read([1], told.append)  # type: ignore[arg-type]
    assert told == fenced
    assert found[1].checkpoint is not None
    assert found[1].checkpoint.offset == 7

"""Catching up against a log and transactions in a script: what is written when, and what becomes of it when Kafka says no."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from confluent_kafka import KafkaError, KafkaException, TopicPartition

from core import state
from core.kafka import catch_up as module
from core.kafka.catch_up import CatchUp, Parked
from core.kafka.config import REAL
from core.kafka.records import headers
from core.kafka.transactions import Blocked, Refused, StateRecord
from core.ownership import OwnedPartition, PartitionState
from core.parked import ParkedRule
from core.rules import Output, Rule, RuleConfig, RuleSet
from core.state import Checkpoint, ParkedState
from relay.model.limits import CoreLimits
from relay.model.message import Kind
from tests.unit.core.test_owner_run import STREAM, FakeMessage

RULE = Rule("app", msgspec.convert({"id": "bad", "target": {"routing_key": "late"}}, RuleConfig))
COMMITTED = 6


class Repeated(FakeMessage):
    def __init__(self, partition: int, offset: int, first: int) -> None:
        super().__init__(partition, offset)
        self._first = first

    def headers(self) -> list[tuple[str, str | bytes | None]]:
        return headers(Kind.MESSAGE, f"s:{self._first}")


class Log:
    """A partition with records up to 9, of which the first `low` are gone."""

    def __init__(self) -> None:
        self.low = 0
        self.repeats: dict[int, int] = {}
        """Offset → that of the record whose id it has."""
        self._unread: deque[FakeMessage] = deque()

    def assign(self, places: list[TopicPartition]) -> None:
        self._unread = deque(Repeated(1, offset, self.repeats.get(offset, offset)) for offset in range(max(places[0].offset, self.low), 10))

    def unassign(self) -> None:
        self._unread.clear()

    def poll(self, _wait: float) -> Any:
        return self._unread.popleft() if self._unread else None

    def consume(self, most: int, _wait: float) -> list[Any]:
        return [self._unread.popleft() for _ in range(min(most, len(self._unread)))]

    def get_watermark_offsets(self, _at: TopicPartition, timeout: float) -> tuple[int, int]:
        return self.low, 10


class Transactions:
    def __init__(self) -> None:
        self.committing = False
        self.fails: list[Exception] = []
        self.before: Callable[[], None] = lambda: None
        self.written: list[tuple[int, StateRecord, TopicPartition, Any]] = []
        self.closed = False

    def write(
        self, outputs: list[Output], states: list[StateRecord], offsets: list[TopicPartition], group: Callable[[], Any]
    ) -> list[Output]:
        self.before()
        if self.fails:
            raise self.fails.pop(0)
        self.written.append((len(outputs), states[0], offsets[0], group()))
        return outputs

    def close(self) -> None:
        self.closed = True


class World:
    def __init__(self, cursor: int = 2) -> None:
        key = state.parked_key(RULE.label, "")
        found = PartitionState(Checkpoint(stream=STREAM, offset=COMMITTED), {key: state.encode(ParkedState(offset=cursor))})
        self.owned = OwnedPartition(
            1, found, stream=STREAM, core="core-1", low=0, first=COMMITTED, rules_from=COMMITTED, time=0, channels=0, now=0.0,
            rules=RuleSet([RULE], site="core-1"),
        )  # fmt: skip
        (self.parked,) = self.owned.parked.rules.values()
        self.lost: list[int] = []
        self.log, self.transactions = Log(), Transactions()
        self.faults: dict[str, str] = {}
        run: Any = object.__new__(CatchUp)
        run._config = SimpleNamespace(capabilities=REAL)
        run._stream = SimpleNamespace(topic="t.log", stream=STREAM)
        run._state_topic = SimpleNamespace(topic="t.state")
        run._account = SimpleNamespace(
            core="core-1", wrote=lambda _: None, complain=lambda *_: None, lose=lambda _rule, _number, count: self.lost.append(count)
        )
        run._limits = CoreLimits()
        run._closing = threading.Event()
        run._inbox = SimpleNamespace(empty=lambda: True)
        run._waiting = deque([Parked(self.parked, self.owned)])
        run._lows = {}
        run._consumer = self.log
        run._targets = SimpleNamespace(faults=lambda topics: {topic: self.faults[topic] for topic in topics if topic in self.faults})
        run._transactions = self.transactions
        run._open = lambda: self.transactions
        run.group, run.failed = "generation 7", None
        self.run = run

    def turn(self) -> None:
        """One turn; it ends where the owner would take the rule back."""
        offer = CatchUp._offer

        def offered(parked: ParkedRule, to: int) -> bool:
            done = offer(self.run, parked, to)
            if done:
                self.run._closing.set()
            return done

        self.run._offer = offered
        self.run._turn()


def test_it_writes_up_to_the_owners_position_and_offers_to_come_back() -> None:
    world = World()
    world.turn()
    ((count, record, offset, group),) = world.transactions.written
    assert (count, record.partition, record.key) == (4, 1, world.parked.key)
    assert state.decode(record.key, record.value or b"") == (["parked", RULE.label, ""], ParkedState(offset=COMMITTED, time=1_005))
    assert (offset.topic, offset.partition, group) == ("t.state", 1, "generation 7")
    assert (world.parked.cursor, world.parked.offered) == (COMMITTED, True)


def test_while_the_topic_is_missing_nothing_is_read_and_the_wait_grows() -> None:
    world = World()
    world.faults = {"late": "missing_topic"}
    world.turn()
    assert (world.parked.reason, world.parked.failures, world.parked.catching_up) == ("missing_topic", 1, False)
    assert world.transactions.written == []
    assert world.parked.cursor == 2


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        (Blocked({"late": "unauthorized_topic"}), "unauthorized_topic"),
        (KafkaException(KafkaError(KafkaError._TIMED_OUT)), "transaction_failed"),
    ],
)
def test_after_a_failure_it_begins_again_at_its_cursor(failure: Exception, reason: str) -> None:
    world = World()
    world.transactions.fails = [failure]
    world.turn()
    assert (world.parked.reason, world.parked.cursor, world.run.failed) == (reason, 2, None)
    world.parked.retry_at = 0.0
    world.turn()
    assert [(count, offset.offset) for count, _, offset, _ in world.transactions.written] == [(4, COMMITTED)]


@pytest.mark.parametrize(
    "failure",
    [KafkaException(KafkaError(KafkaError._TIMED_OUT)), Refused(KafkaError(KafkaError._FENCED), final=True)],
    ids=["timed out", "fenced"],
)
def test_a_commit_that_may_have_happened_is_for_the_state_to_tell(failure: Exception) -> None:
    world = World()
    world.transactions.fails = [failure]
    world.transactions.before = lambda: setattr(world.transactions, "committing", True)
    world.turn()
    assert world.run.failed is not None
    assert world.transactions.closed


def test_refused_by_the_group_it_tries_again_with_what_the_group_says_then() -> None:
    world = World()
    world.transactions.fails = [Refused(KafkaError(KafkaError.ILLEGAL_GENERATION), final=False)]
    world.turn()
    assert (world.run.failed, world.parked.failures) == (None, 0)
    world.parked.retry_at, world.run.group = 0.0, "generation 8"
    world.turn()
    assert [group for *_, group in world.transactions.written] == ["generation 8"]


def test_the_metadata_is_older_than_the_look_at_whose_the_partition_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was given up while the log was read, and the group has gone on: what is sent, if anything, is of the generation before."""
    world = World()
    read = module.LogReader.read

    def given_up_meanwhile(reader: Any, to: int, enough: Callable[[], bool]) -> None:
        read(reader, to, enough)
        world.run.group = "generation 8"

    monkeypatch.setattr(module.LogReader, "read", given_up_meanwhile)
    world.turn()
    assert [group for *_, group in world.transactions.written] == ["generation 7"]


def test_a_partition_that_was_given_up_is_left_alone() -> None:
    world = World()
    world.owned.parked.give_up()
    world.turn()
    assert world.transactions.written == []
    assert not world.run._waiting


def test_what_retention_took_is_told_and_the_rest_is_written() -> None:
    world = World()
    world.log.low = 5
    world.turn()
    assert world.lost == [3]
    assert [(count, offset.offset) for count, _, offset, _ in world.transactions.written] == [(1, COMMITTED)]


def test_a_record_that_repeats_one_before_the_cursor_is_a_duplicate() -> None:
    world = World(cursor=4)
    world.log.repeats = {5: 1}
    world.turn()
    assert [(count, offset.offset) for count, _, offset, _ in world.transactions.written] == [(1, COMMITTED)]

"""Single steps of a mapping's thread, with a consumer that refuses some of them."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException, TopicPartition

from core.kafka.lanes import Position
from core.kafka.mapping_runner import MappingRunner, _Partition
from core.kafka.topics import StreamInfo
from core.mappings import Seek, Steering

PLACE = ("orders", 0)
OTHER = ("orders", 1)


class Lane:
    def close(self) -> None:
        pass


def make_runner(consumer: object) -> Any:
    runner: Any = object.__new__(MappingRunner)
    runner._consumer = consumer
    runner._appends = SimpleNamespace(log=StreamInfo("abcdefgh", "t.log", 1), ends=[0])
    runner._parts = {place: _Partition(Lane(), 2, 0) for place in (PLACE, OTHER)}  # type: ignore[arg-type]
    runner._paused, runner._scans, runner._anew = set(), [], False
    runner._mapping = SimpleNamespace(id="m")
    runner._call = lambda *_: None
    runner._lane = lambda _: Lane()
    return runner


def test_a_position_that_kafka_did_not_take_is_committed_again() -> None:
    class Consumer:
        def commit(self, offsets: list[TopicPartition], asynchronous: bool) -> list[TopicPartition]:
            return [
                SimpleNamespace(topic=at.topic, partition=at.partition, error=KafkaError(3) if at.partition else None) for at in offsets
            ]  # type: ignore[misc]

    runner = make_runner(Consumer())
    errors = runner._commit_positions({place: (part, Position(5, [0])) for place, part in runner._parts.items()}, wait=True)
    assert [error.code() for error in errors] == [3]
    assert runner._parts[PLACE].committed == Position(5, [0])
    assert runner._parts[OTHER].committed is None


def test_after_a_seek_nothing_is_taken_from_where_the_consumer_was_though_it_could_not_be_moved() -> None:
    class Consumer:
        def commit(self, offsets: list[TopicPartition], asynchronous: bool) -> list[TopicPartition]:
            return offsets

        def get_watermark_offsets(self, _at: TopicPartition, timeout: float) -> tuple[int, int]:
            return 0, 9

        def incremental_unassign(self, _at: list[TopicPartition]) -> None:
            raise KafkaException(KafkaError(KafkaError._STATE))

    runner = make_runner(Consumer())
    with pytest.raises(KafkaException):
        runner._move(PLACE, runner._parts[PLACE], Seek(number=1, at=0, to="earliest", topics=["orders"]))
    assert set(runner._parts) == {OTHER}
    assert runner._anew, "another consumer begins at what was committed"


@pytest.mark.parametrize("refused", [True, False])
def test_nothing_is_appended_before_kafka_has_taken_where_it_begins(refused: bool) -> None:
    """It refuses whom it does not count among the group."""

    class Consumer:
        def committed(self, at: list[TopicPartition], timeout: float) -> list[TopicPartition]:
            return [TopicPartition(each.topic, each.partition, -1001) for each in at]

        def get_watermark_offsets(self, _at: TopicPartition, timeout: float) -> tuple[int, int]:
            return 0, 9

        def incremental_assign(self, _at: list[TopicPartition]) -> None:
            pass

        resume = incremental_assign

        def commit(self, offsets: list[TopicPartition], asynchronous: bool) -> list[TopicPartition]:
            if refused:
                raise KafkaException(KafkaError(KafkaError.UNKNOWN_MEMBER_ID))
            return []

    runner = make_runner(Consumer())
    runner._parts, runner._begun, runner._counts, runner._born = {}, {}, {}, {"orders"}
    runner._ready, runner._lease_until, runner._steering = threading.Event(), 0.0, Steering()
    runner._hold = lambda: None
    runner._assigned(None, [TopicPartition(*PLACE)])
    assert runner._may_append() is not refused
    assert runner._still_member() is not refused

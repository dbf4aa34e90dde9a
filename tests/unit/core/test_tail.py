"""What the tail makes of what its driver hands it. The driver is a script."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException

from core.events import Event, Gap, Tailed
from core.kafka.config import LOOK_BACK_S, KafkaConfig
from core.kafka.tail import Tail
from core.kafka.topics import StreamInfo
from core.state import Checkpoint
from relay.model.limits import CoreLimits

LOG = StreamInfo("aaaabbbb", "t.log", 2)


class Message:
    def __init__(self, partition: int, offset: int, error: KafkaError | None = None) -> None:
        self._place = (partition, offset)
        self._error = error

    def error(self) -> KafkaError | None:
        return self._error

    def topic(self) -> str:
        return LOG.topic

    def partition(self) -> int:
        return self._place[0]

    def offset(self) -> int:
        return self._place[1]

    def timestamp(self) -> tuple[int, int]:
        return 2, 1_000

    def key(self) -> bytes:
        return b"app:a"

    def value(self) -> bytes:
        return b"v"

    def headers(self) -> list[tuple[str, bytes]]:
        return [("kind", b"0"), ("id", b"s:x"), ("version", b"1")]


class Consumer:
    """Answers for watermarks, or none."""

    def __init__(self, marks: tuple[int, int] | None) -> None:
        self.marks = marks
        self.assigned: list[tuple[int, int]] = []

    def get_watermark_offsets(self, *_: Any, **__: Any) -> tuple[int, int]:
        if self.marks is None:
            raise KafkaException(KafkaError(KafkaError._TRANSPORT))
        return self.marks

    def assign(self, places: list[Any]) -> None:
        self.assigned = [(place.partition, place.offset) for place in places]


def read(consumer: Consumer, messages: list[Message], error: type[Exception] | None = None) -> tuple[Tail, list[Event]]:
    events: list[Event] = []

    async def main() -> Tail:
        tail = Tail(KafkaConfig(brokers="x:1"), [LOG], CoreLimits(), asyncio.get_running_loop(), events.extend)
        tail._positions = {(LOG.topic, 0): 5, (LOG.topic, 1): 7}
        if error is not None:
            with pytest.raises(error):
                tail._take(consumer, messages)  # type: ignore[arg-type]
        else:
            tail._take(consumer, messages)  # type: ignore[arg-type]
        tail._outlet.flush()
        return tail

    return asyncio.run(main()), events


def test_records_read_beside_a_lost_position_are_delivered_though_kafka_does_not_say_where_to_go_on() -> None:
    """What is not delivered must be read again, and what is read again begins at the position."""
    gone = KafkaError(KafkaError._AUTO_OFFSET_RESET)
    tail, events = read(Consumer(None), [Message(0, 5), Message(1, 7, gone), Message(0, 6)], KafkaException)
    (tailed,) = events
    assert isinstance(tailed, Tailed)
    assert [record.offset for record in tailed.records] == [5, 6]
    assert tail.positions() == {("aaaabbbb", 0): 7, ("aaaabbbb", 1): 7}


def test_a_gap_is_told_after_the_records_before_it_and_reading_goes_on_behind_it() -> None:
    consumer = Consumer((20, 30))
    _, events = read(consumer, [Message(1, 7), Message(1, 8, KafkaError(KafkaError.OFFSET_OUT_OF_RANGE)), Message(0, 5)])
    assert [type(event) for event in events] == [Tailed, Gap]
    assert events[1] == Gap("aaaabbbb", 1, 8, 20)
    assert consumer.assigned == [(0, 6), (1, 20)]


def test_a_tail_begins_as_long_before_an_old_checkpoint_as_before_now() -> None:
    """Nobody was there in between: clients ask for what was written in the minutes before it."""
    now_ms, look_back_ms = 1_800_000_000_000, int(LOOK_BACK_S * 1000)
    times = {(LOG.topic, 0): now_ms - 3_600_000, (LOG.topic, 1): now_ms + 5}
    checkpoints = {place: Checkpoint(LOG.stream, 3, time) for place, time in times.items()}

    async def main() -> Tail:
        return Tail(KafkaConfig(brokers="x:1"), [LOG], CoreLimits(), asyncio.get_running_loop(), lambda _: None, checkpoints)

    tail = asyncio.run(main())
    assert [tail._since(place, now_ms) for place in times] == [now_ms - 3_600_000 - look_back_ms, now_ms - look_back_ms]

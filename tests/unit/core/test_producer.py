"""`LogProducer` and a driver that misbehaves. The real one is in tests/kafka."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from confluent_kafka import KafkaError, KafkaException

from core.events import Event, Overfull, Reported
from core.kafka.config import KafkaConfig
from core.kafka.producer import LogProducer
from core.kafka.topics import StreamInfo
from relay.model.limits import CoreLimits


class Written:
    def __init__(self, offset: int) -> None:
        self._offset = offset

    def offset(self) -> int:
        return self._offset


class Broker:
    """Hands out producers; `faults` are raised, one each, by the next polls or by the making of the next producers."""

    def __init__(self, *, polls: int = 0, makes: int = 0) -> None:
        self.polls, self.makes = polls, makes
        self.made = 0
        self.offset = 0

    def producer(self, _: dict[str, Any]) -> Driver:
        if self.made and self.makes:
            self.makes -= 1
            raise KafkaException(KafkaError(KafkaError._FAIL))
        self.made += 1
        return Driver(self)


class Driver:
    def __init__(self, broker: Broker) -> None:
        self.broker = broker
        self.queue: list[Callable[[], None]] = []
        self.closed = False

    def produce(self, _topic: str, _value: bytes, _key: bytes, _partition: int, report: Callable[..., None], **_: Any) -> None:
        assert not self.closed
        self.queue.append(lambda: report(None, Written(self.broker.offset)))

    def poll(self, _: float) -> None:
        assert not self.closed
        if self.queue and self.broker.polls:
            self.broker.polls -= 1
            raise RuntimeError("a defect of the driver")
        while self.queue:
            self.broker.offset += 1
            self.queue.pop(0)()

    flush = poll

    def purge(self, **_: Any) -> None:
        assert not self.closed
        self.queue.clear()

    def close(self) -> None:
        self.closed = True

    def __len__(self) -> int:
        return len(self.queue)


def published(broker: Broker, count: int) -> list[Event]:
    events: list[Event] = []

    async def main() -> None:
        stream = StreamInfo("aaaabbbb", "t.log", 1)
        loop = asyncio.get_running_loop()
        producer = LogProducer(KafkaConfig(brokers="x:1"), stream, CoreLimits(), loop, events.extend, broker.producer)
        producer.start()
        async with asyncio.timeout(20):
            for ticket in range(count):
                while True:
                    before = len(events)
                    producer.append(ticket, 0, b"k", b"v", 0, f"s:{ticket}")
                    while len(events) == before:  # noqa: ASYNC110
                        await asyncio.sleep(0.01)
                    if not isinstance(events[-1], Overfull):
                        break
                    await asyncio.sleep(0.2)
        await producer.close()

    asyncio.run(main())
    return [event for event in events if not isinstance(event, Overfull)]


def test_until_a_refusal_is_told_nothing_more_is_taken() -> None:
    """Or what its publisher sent after it, not knowing, would be in the log before it."""
    events: list[Event] = []
    broker = Broker()

    async def main() -> None:
        stream = StreamInfo("aaaabbbb", "t.log", 2)

        def deliver(batch: list[Event]) -> None:
            if batch == [Reported(0, 0, 1)]:  # there is room again, but the refusal of the second is still on its way
                producer.append(2, 0, b"k", b"v", 0, "s:2")
                producer.append(3, 1, b"k", b"v", 0, "s:3")
            events.extend(batch)
            if batch == [Overfull(2, "partition budget")]:
                producer.append(4, 0, b"k", b"v", 0, "s:4")

        limits = CoreLimits(partition_budget_records=1)
        producer = LogProducer(KafkaConfig(brokers="x:1"), stream, limits, asyncio.get_running_loop(), deliver, broker.producer)
        producer.start()
        producer.append(0, 0, b"k", b"v", 0, "s:0")
        while producer.unreported:
            time.sleep(0.01)  # noqa: ASYNC251 - the loop must not run meanwhile
        producer.append(1, 0, b"k", b"v", 0, "s:1")
        async with asyncio.timeout(20):
            while len(events) < 5:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        await producer.close()

    asyncio.run(main())
    assert {event.ticket for event in events if isinstance(event, Reported)} == {0, 3, 4}
    assert [event.ticket for event in events if isinstance(event, Overfull)] == [1, 2]


def test_an_exception_on_the_producers_thread_leaves_no_publish_unanswered_and_publishing_goes_on() -> None:
    broker = Broker(polls=1)
    assert published(broker, 2) == [Reported(0, 0, None), Reported(1, 0, 1)]
    assert broker.made == 2


def test_a_producer_that_cannot_be_made_is_tried_again() -> None:
    broker = Broker(polls=1, makes=2)
    assert published(broker, 2) == [Reported(0, 0, None), Reported(1, 0, 1)]

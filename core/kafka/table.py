"""A compacted topic as a table: one partition in one order, read from its beginning, written with read-back."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable
from functools import partial
from typing import Any

import confluent_kafka
from confluent_kafka import KafkaError, KafkaException, TopicPartition

from core.events import EndOffset, Event
from core.kafka.config import KafkaConfig
from core.kafka.consumer import KafkaThread, open_consumer, read_batch
from core.kafka.ends import EndOffsets
from core.kafka.logs import log
from core.kafka.outlet import Deliver, Outlet
from core.kafka.topics import StreamInfo
from relay.model.limits import CoreLimits

PARTITION = 0
"""The embedded broker has four of every topic; only this one is used."""
BATCH = 512
WRITE_TIMEOUT_S = 30.0
ASK_S = 3.0


class Table(KafkaThread):
    """Delivers `read(key, value)` for every record, in order, from the first one on; `ready` when what was there at the start has been
    delivered. `role` is the topic's name without its prefix.

    `ask_end` is answered by `EndOffset(partition=barrier)` once everything written before the ask, by anybody, has been delivered; with
    None when Kafka does not answer in time. `write` is answered by `written(ticket, ok)` after its own record was delivered, or with
    `ok=False` when that did not happen in time: then it may still appear later. At most `writes` of them are under way.
    """

    def __init__(
        self,
        config: KafkaConfig,
        stream: StreamInfo,
        limits: CoreLimits,
        loop: asyncio.AbstractEventLoop,
        deliver: Deliver,
        *,
        role: str,
        barrier: int,
        writes: int,
        read: Callable[[str, bytes | None], Event],
        written: Callable[[int, bool], Event],
    ) -> None:
        super().__init__(f"tidegate-{role}")
        self._role = role
        self._barrier = barrier
        self._most_writes = writes
        self._read = read
        self._written = written
        self._config = config
        self._stream = stream
        self._limits = limits
        self._loop = loop
        self._deliver = deliver
        self._outlet = Outlet(loop, self._settle, limits.tail_queue_bytes, limits.tail_queue_records)
        self._ends = EndOffsets(config, stream, limits, loop, self._ended)
        self._ready: asyncio.Future[None] = loop.create_future()
        self._producer: confluent_kafka.Producer | None = None
        # On the thread
        self._read_to = 0
        # On the loop
        self._position = 0
        """Everything before it has been delivered."""
        self._barriers: list[tuple[int, int]] = []
        """Heap of (offset to reach, ask)."""
        self._durable: list[tuple[int, int]] = []
        """Heap of (offset to reach, ticket)."""
        self._writes: dict[int, asyncio.TimerHandle] = {}
        self._target: int | None = None
        self.advanced: Callable[[int], None] = lambda _: None
        """Told how far the topic has been read, after all that was."""

    # --- on the loop --------------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        self._producer = confluent_kafka.Producer(
            self._config.client(
                self._role, acks="all", enable_idempotence=True, linger_ms=0, message_timeout_ms=int(WRITE_TIMEOUT_S * 1000)
            )
        )
        self._ends.start()
        super().start()

    async def ready(self) -> None:
        await asyncio.shield(self._ready)

    @property
    def position(self) -> int:
        """Everything before it has been delivered."""
        return self._position

    def ask_end(self, ask: int) -> None:
        self._ends.ask(ask, PARTITION)

    def write(self, ticket: int, key: str, value: bytes | None) -> None:
        """`value` None is a tombstone. Never blocks, never raises."""
        if self._producer is None or self.closing.is_set() or len(self._writes) >= self._most_writes or ticket in self._writes:
            self._outlet.put([self._written(ticket, False)])
            return
        self._writes[ticket] = self._loop.call_later(WRITE_TIMEOUT_S + 5.0, self._give_up, ticket)
        try:
            self._producer.produce(self._stream.topic, value, key.encode(), PARTITION, partial(self._on_delivery, ticket))
        except (BufferError, KafkaException):
            self._outlet.put([_Durable(ticket, None)])

    def _give_up(self, ticket: int) -> None:
        if self._writes.pop(ticket, None) is not None:
            self._answer([self._written(ticket, False)])

    def _answer(self, events: list[Event]) -> None:
        if events:
            self._deliver(events)

    def _ended(self, answers: list[Event]) -> None:
        """Answers of `EndOffsets`: wait until the reader has come that far."""
        events: list[Event] = []
        for answer in answers:
            if not isinstance(answer, EndOffset) or answer.offset is None:
                events.append(EndOffset(answer.ask, self._barrier, None) if isinstance(answer, EndOffset) else answer)
            else:
                heapq.heappush(self._barriers, (answer.offset, answer.ask))
        self._answer(events + self._reached())

    def _settle(self, notices: list[Any]) -> None:
        events: list[Event] = []
        for notice in notices:
            if isinstance(notice, _Position):
                self._position = notice.offset
                if notice.target is not None:
                    self._target = notice.target
            elif isinstance(notice, _Durable):
                if notice.ticket not in self._writes:
                    continue  # given up
                if notice.offset is None:
                    self._writes.pop(notice.ticket).cancel()
                    events.append(self._written(notice.ticket, False))
                else:
                    heapq.heappush(self._durable, (notice.offset + 1, notice.ticket))
            else:
                events.append(notice)
        self._answer(events + self._reached())
        self.advanced(self._position)
        if self._target is not None and self._position >= self._target and not self._ready.done():
            self._ready.set_result(None)

    def _reached(self) -> list[Event]:
        """Barriers and writes that the present position answers."""
        events: list[Event] = []
        while self._barriers and self._barriers[0][0] <= self._position:
            offset, ask = heapq.heappop(self._barriers)
            events.append(EndOffset(ask, self._barrier, offset))
        while self._durable and self._durable[0][0] <= self._position:
            _, ticket = heapq.heappop(self._durable)
            timer = self._writes.pop(ticket, None)
            if timer is not None:
                timer.cancel()
                events.append(self._written(ticket, True))
        return events

    async def close(self, timeout_s: float = 10.0) -> None:
        """What is under way is answered as failed."""
        await self._ends.close()
        await super().close(timeout_s)
        self._outlet.flush()
        self._outlet.close()
        for timer in self._writes.values():
            timer.cancel()
        left: list[Event] = [self._written(ticket, False) for ticket in self._writes]
        left += [EndOffset(ask, self._barrier, None) for _, ask in self._barriers]
        self._writes.clear()
        self._barriers.clear()
        self._answer(left)
        self._ready.cancel()
        if self._producer is not None:
            self._producer.purge()
            await asyncio.to_thread(self._producer.close)

    # --- on the thread ------------------------------------------------------------------------------------------------------------

    def _on_delivery(self, ticket: int, error: KafkaError | None, message: Any) -> None:
        if error is not None:
            log.warning("%s: a write failed with %s", self._role, error.name())
        self._outlet.put([_Durable(ticket, None if error is not None else message.offset())])

    def run(self) -> None:
        # EOF is told because compaction leaves holes: the position after the last record is not always one more than its offset.
        consumer = open_consumer(self._config, self._role, enable_partition_eof=True)
        try:
            place = TopicPartition(self._stream.topic, PARTITION)
            low, high = consumer.get_watermark_offsets(place, timeout=ASK_S)
            self._read_to = max(self._read_to, low)
            self._outlet.put([_Position(self._read_to, high)])
            consumer.assign([TopicPartition(self._stream.topic, PARTITION, self._read_to)])
            while not self.closing.is_set():
                self._take(read_batch(consumer, BATCH, 0.05))
                if self._producer is not None:
                    self._producer.poll(0)
        finally:
            consumer.close()

    def _take(self, messages: list[Any]) -> None:
        if not messages:
            return
        notices: list[Any] = []
        size = 0
        for message in messages:
            error = message.error()
            if error is None:
                key = (message.key() or b"").decode(errors="replace")
                value = message.value()
                size += len(key) + len(value or b"")
                notices.append(self._read(key, value))
                self._read_to = message.offset() + 1
            elif error.code() == KafkaError._PARTITION_EOF:
                self._read_to = max(self._read_to, message.offset())
            else:
                log.warning("%s: %s", self._role, error.name())
        notices.append(_Position(self._read_to, None))
        self._outlet.put(notices, size, len(notices), wait=True)


class _Position:
    """Everything before `offset` precedes this notice. `target`: where the topic ended at the start."""

    __slots__ = ("offset", "target")

    def __init__(self, offset: int, target: int | None) -> None:
        self.offset = offset
        self.target = target


class _Durable:
    __slots__ = ("offset", "ticket")

    def __init__(self, ticket: int, offset: int | None) -> None:
        self.ticket = ticket
        self.offset = offset

"""The tail: every record of the log, as it is written, read once by each core for all purposes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from operator import attrgetter
from typing import Any

import confluent_kafka
from confluent_kafka import OFFSET_END, KafkaError, TopicPartition

from core.events import Event, Gap, Looked, Tailed
from core.kafka.config import LOOK_BACK_S, KafkaConfig
from core.kafka.consumer import KafkaThread, open_consumer, read_batch
from core.kafka.logs import log
from core.kafka.outlet import Deliver, Outlet
from core.kafka.records import log_record
from core.kafka.topics import StreamInfo
from core.log import LogRecord
from core.state import Checkpoint
from relay.model.limits import CoreLimits

BATCH = 512
"""Records handed to the loop at once: a few milliseconds of its time at most."""
ASK_S = 3.0
"""How long one question about offsets may take."""
RECORD_OVERHEAD = 300
"""Bytes that a record costs in memory beside key and value."""
LOST_POSITION = (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE)

_key, _value = attrgetter("key"), attrgetter("value")


class Tail(KafkaThread):
    """Delivers `Tailed` in offset order per partition, from `LOOK_BACK_S` before now on, and `Looked` for each partition when it has
    reached what was its end at the start. Given `checkpoints`, it begins early enough for who has the state of then, and for clients that
    were there then: where the checkpoint is older, as long before that; without one, at the beginning of the log.

    A core that is slower than its log makes the tail stop reading (`tail_queue_bytes`, `tail_queue_records`); nothing is left out.
    Kafka out of reach: the tail goes on where it was once it is back. `Gap` if retention was faster than the tail.
    """

    def __init__(
        self,
        config: KafkaConfig,
        streams: list[StreamInfo],
        limits: CoreLimits,
        loop: asyncio.AbstractEventLoop,
        deliver: Deliver,
        checkpoints: Mapping[tuple[str, int], Checkpoint | None] | None = None,
    ) -> None:
        """`checkpoints` are by topic and partition."""
        super().__init__("tidegate-tail")
        self._config = config
        self._checkpoints = checkpoints or {}
        self._streams = {stream.topic: stream for stream in streams}
        self._outlet = Outlet(loop, deliver, limits.tail_queue_bytes, limits.tail_queue_records)
        self._starts: dict[tuple[str, int], int] = {}
        self._positions: dict[tuple[str, int], int] = {}
        """By topic and partition: the next offset to read."""
        self._looking: dict[tuple[str, int], int] = {}
        """Partitions in their look-back, with the offset at which it ends."""
        self._misplaced = False
        self.records = 0

    def positions(self) -> dict[tuple[str, int], int]:
        """Next offset by (stream id, partition): what has been read, a moment before the core has it. For metrics."""
        return {(self._streams[topic].stream, partition): offset for (topic, partition), offset in list(self._positions.items())}

    async def close(self, timeout_s: float = 10.0) -> None:
        self._outlet.close()
        await super().close(timeout_s)

    # --- on the thread ------------------------------------------------------------------------------------------------------------

    def run(self) -> None:
        consumer = open_consumer(self._config, "tail")
        try:
            if not self._positions:
                self._begin(consumer)
            self._assign(consumer)
            while not self.closing.is_set():
                self._take(consumer, read_batch(consumer, BATCH, 0.1))
        finally:
            consumer.close()

    def _assign(self, consumer: confluent_kafka.Consumer) -> None:
        consumer.assign([TopicPartition(topic, partition, offset) for (topic, partition), offset in self._positions.items()])

    def _begin(self, consumer: confluent_kafka.Consumer) -> None:
        """Where each partition starts, and where its look-back ends. Kept only when known for all, so that a failure changes nothing."""
        now_ms = time.time_ns() // 1_000_000
        places = [(stream.topic, partition) for stream in self._streams.values() for partition in range(stream.partitions)]
        marks = {place: consumer.get_watermark_offsets(TopicPartition(*place), timeout=ASK_S) for place in places}
        starts = {place: low for place, (low, _) in marks.items()}
        if self._config.capabilities.offsets_for_times:
            asked = [TopicPartition(*place, self._since(place, now_ms)) for place in places]
            for found in consumer.offsets_for_times(asked, timeout=ASK_S):
                place = (found.topic, found.partition)
                low, high = marks[place]
                # No record is as young: start at the end, as it was asked for before, so that nothing falls between the two answers.
                start = high if found.offset == OFFSET_END else found.offset
                checkpoint = self._checkpoints.get(place)
                starts[place] = max(start if checkpoint is None else min(start, checkpoint.offset), low)
        self._starts = starts
        self._looking = {place: max(high, starts[place]) for place, (_, high) in marks.items()}
        self._positions = dict(starts)
        self._outlet.put([event for place in places for event in self._looked(place)])

    def _since(self, place: tuple[str, int], now_ms: int) -> int:
        """The broker time from which a partition is to be read."""
        since = max(0, now_ms - int(LOOK_BACK_S * 1000))
        if place not in self._checkpoints:
            return since
        checkpoint = self._checkpoints[place]
        return 0 if checkpoint is None else max(0, min(since, checkpoint.time - int(LOOK_BACK_S * 1000)))

    def _looked(self, place: tuple[str, int]) -> list[Event]:
        """`Looked`, once per partition, when it is due."""
        end = self._looking.get(place)
        if end is None or self._positions[place] < end:
            return []
        del self._looking[place]
        return [Looked(place[1], self._starts[place], self._positions[place])]

    def _take(self, consumer: confluent_kafka.Consumer, messages: list[Any]) -> None:
        if not messages:
            return
        records: list[LogRecord] = []
        troubles: list[Any] = []
        topic, partition, stream = "", -1, ""
        for message in messages:
            if message.error() is not None:
                troubles.append(message)
                continue
            if message.partition() != partition or message.topic() != topic:  # they come in runs
                if stream:
                    self._positions[topic, partition] = records[-1].offset + 1
                topic, partition = message.topic(), message.partition()
                stream = self._streams[topic].stream
            records.append(log_record(message, stream))
        if stream:
            self._positions[topic, partition] = records[-1].offset + 1
        size = sum(map(len, map(_value, records))) + sum(map(len, map(_key, records))) + len(records) * RECORD_OVERHEAD
        self.records += len(records)
        events: list[Event] = [Tailed(records)] if records else []
        for place in list(self._looking):
            events += self._looked(place)
        # Before anything can fail: what lies before the positions is never read again.
        if events:
            self._outlet.put(events, size, len(records), wait=True)
        for message in troubles:
            if told := self._trouble(consumer, message):
                self._outlet.put(told)
        if self._misplaced:
            self._misplaced = False
            self._assign(consumer)

    def _trouble(self, consumer: confluent_kafka.Consumer, message: Any) -> list[Event]:
        error: KafkaError = message.error()
        if error.code() not in LOST_POSITION:
            log.warning("tail: %s", error.name())
            return []
        topic, partition = place = (message.topic(), message.partition())
        position = self._positions[place]
        low, high = consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=ASK_S)
        resumed = low if position < low else min(position, high)
        self._positions[place] = resumed
        self._misplaced = True  # by a new assignment of all: librdkafka cannot seek in a partition that failed
        if resumed == position:
            return []  # a leader that knows less for a moment
        log.error("tail: %s/%d has no record %d any more, going on at %d", topic, partition, position, resumed)
        return [Gap(self._streams[topic].stream, partition, position, resumed), *self._looked(place)]

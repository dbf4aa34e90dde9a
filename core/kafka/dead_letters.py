"""The dead letter topic of a mapping: records that cannot become messages, as they were, with the reason in headers."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

import confluent_kafka
from confluent_kafka import KafkaError, KafkaException

from core.kafka.config import KafkaConfig
from core.kafka.targets import TargetTopics
from core.mappings import Failed, SourceRecord

HEADER = "tidegate.dlq."
"""First part of the headers that are added: `reason`, `detail`, `mapping`, `topic`, `partition`, `offset`."""
TIMEOUT_MS = 30_000
"""How long one attempt to write a record lasts."""
MAX_BYTES = 1_000_000_000
"""The driver's own limit of a record, at its highest: what a topic takes is for its brokers to say."""
RETRY_S = 1.0
"""Wait before a record that was not written is tried again."""


class _Letter(NamedTuple):
    record: SourceRecord
    failed: Failed
    done: Callable[[], None]


class DeadLetters:
    """Every `bury` ends with `done`, once the topic has the record, however long that takes. Belongs to one thread.

    What is not written is tried again each second: a missing topic, a forbidden one and one whose limit is too low hold up the partition
    (its mark does not pass the record) until that is put right.
    """

    def __init__(self, config: KafkaConfig, topic: str, mapping: str, topics: TargetTopics, complain: Callable[[str], None]) -> None:
        self._topic = topic
        self._mapping = mapping
        self._topics = topics
        self._complain = complain
        self._waiting: deque[_Letter] = deque()
        self._retry_at = 0.0
        self._open = 0
        self.written = 0
        self._producer: Any = confluent_kafka.Producer(
            config.client(
                "dead-letters",
                acks="all",
                enable_idempotence=True,
                message_timeout_ms=TIMEOUT_MS,
                message_max_bytes=MAX_BYTES,
                partitioner="murmur2_random",  # as Java producers place keys
            )
        )

    @property
    def pending(self) -> int:
        return self._open + len(self._waiting)

    def bury(self, record: SourceRecord, failed: Failed, done: Callable[[], None]) -> None:
        """`done` is called by `poll` or `flush`."""
        self._waiting.append(_Letter(record, failed, done))

    def poll(self) -> None:
        """Does not wait, except for a look at the topic. Raises KafkaException."""
        self._producer.poll(0)
        now = time.monotonic()
        if not self._waiting or now < self._retry_at:
            return
        if fault := self._topics.faults({self._topic}).get(self._topic):
            self._fail(fault.replace("_", " "))
            return
        while self._waiting:
            letter = self._waiting[0]
            try:
                self._send(letter)
            except BufferError:
                return
            except KafkaException as refused:
                self._fail(refused.args[0].name())
                return
            self._waiting.popleft()
            self._open += 1
        self._producer.poll(0)

    def flush(self, timeout_s: float) -> None:
        """Wait at most so long for what is written."""
        until = time.monotonic() + timeout_s
        while self._open and time.monotonic() < until:
            self._producer.poll(0.05)

    def close(self) -> None:
        """What is un-acknowledged may or may not be in the topic; its partition's mark has not passed it."""
        self._producer.purge(in_queue=True, in_flight=True, blocking=True)
        self._producer.flush(1.0)

    def _send(self, letter: _Letter) -> None:
        record, failed = letter.record, letter.failed
        about = {
            "reason": failed.reason,
            "detail": failed.detail,
            "mapping": self._mapping,
            "topic": record.topic,
            "partition": str(record.partition),
            "offset": str(record.offset),
        }
        self._producer.produce(
            self._topic,
            record.value,
            record.key,
            headers=[*(record.headers or ()), *((HEADER + name, text.encode()) for name, text in about.items())],
            on_delivery=lambda error, _: self._reported(letter, error),
        )

    def _reported(self, letter: _Letter, error: KafkaError | None) -> None:
        self._open -= 1
        if error is None:
            self.written += 1
            letter.done()
            return
        self._waiting.append(letter)
        self._fail(error.name())

    def _fail(self, why: str) -> None:
        self._retry_at = time.monotonic() + RETRY_S
        self._complain(f"the dead letter topic takes nothing: {why}")

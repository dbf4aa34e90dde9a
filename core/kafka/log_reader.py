"""The log once more, for one rule on one partition that is behind its owner."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from confluent_kafka import KafkaError, KafkaException, TopicPartition

from core.fold import Fold
from core.kafka.config import SKEW_S, WINDOW_S, KafkaConfig
from core.kafka.consumer import read_batch
from core.kafka.records import log_record
from core.kafka.topics import StreamInfo
from core.kafka.transactions import CALL_S
from core.ownership import OwnedPartition, PartitionState
from core.remote import Place
from core.rules import Batcher, Rule, RuleSet
from relay.model.limits import CoreLimits

BATCH = 1_000
SILENT_S = 10.0
"""An attempt fails when nothing of the log has come for so long, in seconds."""

_LOST_POSITION = (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE)


def open_reader(
    config: KafkaConfig,
    stream: StreamInfo,
    consumer: Any,
    rule: Rule,
    number: int,
    cursor: Place,
    *,
    low: int,
    core: str,
    limits: CoreLimits,
    closing: threading.Event,
) -> LogReader:
    """From far enough before the cursor for the verdicts on duplicates; for presence, lifecycle and occupancy, from the beginning of the
    log (`low`), since what an event means depends on those before it. Raises KafkaException."""
    topic = stream.topic
    start = low
    if cursor.time and rule.config.source.type == "channel.message" and config.capabilities.offsets_for_times:
        asked = TopicPartition(topic, number, max(0, cursor.time - int((WINDOW_S + SKEW_S) * 1000)))
        (at,) = consumer.offsets_for_times([asked], timeout=CALL_S)
        if at.error is not None:
            raise KafkaException(at.error)
        start = cursor.offset if at.offset < 0 else max(low, min(at.offset, cursor.offset))
    consumer.assign([TopicPartition(topic, number, start)])
    span = OwnedPartition(
        number,
        PartitionState(None, {}),
        stream=stream.stream,
        core=core,
        low=low,
        first=start,
        rules_from=cursor.offset,
        time=0,
        channels=0,
        now=time.monotonic(),
        batcher=Batcher(limits.rule_batch_events, limits.rule_batch_bytes),
    )
    return LogReader(consumer, stream.stream, span, RuleSet([rule], site=core), limits, closing)


class LogReader:
    """One partition of the log, from far enough back on, through the eyes of one rule."""

    def __init__(
        self, consumer: Any, stream: str, span: OwnedPartition, rules: RuleSet, limits: CoreLimits, closing: threading.Event
    ) -> None:
        self._consumer = consumer
        self._stream = stream
        self.span = span
        self.written = span.rules_from
        """Where the cursor stands in the state."""
        self._rules = rules
        self._limits = limits
        self._closing = closing
        self._fold = Fold(limits.fold_ids, os.urandom(16))
        self._ahead: deque[Any] = deque()

    def read(self, to: int, enough: Callable[[], bool]) -> None:
        """Up to offset `to`, or as much as belongs into one transaction. Raises KafkaException."""
        span, limits = self.span, self._limits
        heard = time.monotonic()
        records = 0
        while span.position < to and records < limits.owner_span_records and span.size < limits.owner_span_bytes:
            if self._closing.is_set() or enough():
                return
            if not self._ahead:
                self._ahead.extend(read_batch(self._consumer, BATCH, 0.1))
                now = time.monotonic()
                if self._ahead:
                    heard = now
                elif now - heard > SILENT_S:
                    raise KafkaException(KafkaError(KafkaError._TIMED_OUT, "reading the log"))
                continue
            message = self._ahead[0]
            error = message.error()
            if error is not None:
                self._ahead.popleft()
                if error.fatal() or error.code() in _LOST_POSITION:
                    raise KafkaException(error)
                continue
            if message.partition() != span.number or message.offset() < span.position:
                self._ahead.popleft()
                continue
            if message.offset() >= to:
                span.position = to
                return
            self._ahead.popleft()
            record = log_record(message, self._stream)
            duplicate = self._fold.see(record.partition, record.key, record.id, record.timestamp, record.offset) is not None
            size = span.size
            span.take(record, duplicate=duplicate, rules=self._rules, now=heard)  # what it cannot write was counted by the owner
            records += span.size != size

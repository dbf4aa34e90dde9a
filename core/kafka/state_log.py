"""`tidegate.state` as it is read: whole partitions, from the first record to their last checkpoint."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec
from confluent_kafka import OFFSET_BEGINNING, IsolationLevel, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec

from core import state
from core.events import StateRead
from core.kafka.config import KafkaConfig
from core.kafka.consumer import answer, open_consumer, read_batch
from core.kafka.errors import Unreachable
from core.kafka.logs import log
from core.kafka.topics import StreamInfo
from core.ownership import PartitionState
from core.state import Checkpoint

BATCH = 5_000
ASK_S = 10.0
"""Longest wait for one answer of Kafka."""
SILENT_S = 20.0
"""A read of the state fails when nothing of it has come for this long: longer than brokers keep a transaction open (10 s), and look
every 10 s for those that are over."""
IN_FLIGHT_S = 0.3
"""How long a transaction may be in flight before its core is taken to be gone: many times what one takes."""


class StateReader:
    """Reads partitions of the state, to the end that they had when it was asked for (`settled`) or to the last stable offset."""

    def __init__(self, config: KafkaConfig, topic: StreamInfo, stream: StreamInfo, closing: threading.Event | None = None) -> None:
        """`topic` is that of the state, `stream` the log that it must be about. `closing` ends a read early."""
        self._config = config
        self._topic = topic.topic
        self._stream = stream.stream
        self._closing = closing or threading.Event()

    def read(self, partitions: Iterable[int], fence: Callable[[str], None] | None = None) -> dict[int, PartitionState]:
        """By partition. Without `fence`, what committed transactions say up to the first one that is still open.

        With `fence`, nothing is left to come from those who wrote before: transactions that are open are waited for. A core that was killed
        in the middle of one would be waited for in vain, until its time-out: it is told to `fence`, by name; a second time if something is
        still open after that, as a core has two producers.

        Blocks. Raises KafkaException.
        """
        wanted = sorted(partitions)
        ends = _ends(self._config, self._topic, wanted) if fence else dict.fromkeys(wanted, 0)
        found = {number: _Partition() for number in wanted}
        # EOF is told because compaction and control records leave holes: the end cannot be told from offsets alone.
        consumer = open_consumer(self._config, "state", isolation_level="read_committed", enable_partition_eof=True)
        try:
            consumer.assign([TopicPartition(self._topic, number, OFFSET_BEGINNING) for number in wanted])
            waiting = set(wanted)
            blocked: set[int] = set()  # read up to a transaction that is still open
            fenced: Counter[str] = Counter()
            heard = time.monotonic()
            while waiting and not self._closing.is_set():
                messages = read_batch(consumer, BATCH, 0.05)
                now = time.monotonic()
                for message in messages:
                    number = message.partition()
                    error = message.error()
                    if error is None:
                        found[number].take(message)
                        blocked.discard(number)
                        heard = now
                    elif error.code() == KafkaError._PARTITION_EOF:
                        heard = now
                        if message.offset() >= ends[number]:
                            waiting.discard(number)
                        else:
                            blocked.add(number)
                    elif error.fatal() or error.code() in (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE):
                        raise KafkaException(error)
                if now - heard > SILENT_S:
                    raise KafkaException(KafkaError(KafkaError._TIMED_OUT, f"reading {self._topic}"))
                # Brokers that are slow to answer are no reason to end anybody's transactions.
                if fence and now - heard > IN_FLIGHT_S:
                    for core in {found[number].owner for number in waiting & blocked} - {""}:
                        if fenced[core] < 2:
                            fenced[core] += 1
                            fence(core)
                            heard = now = time.monotonic()
        finally:
            consumer.close()
        return {number: partition.state(self._stream) for number, partition in found.items()}


def _ends(config: KafkaConfig, topic: str, partitions: Iterable[int]) -> dict[int, int]:
    """Where the partitions end, with what is not yet committed. Raises KafkaException."""
    admin = AdminClient(config.client("state"))
    asked = {TopicPartition(topic, number): OffsetSpec.latest() for number in partitions}  # type: ignore[no-untyped-call]
    futures = admin.list_offsets(asked, isolation_level=IsolationLevel.READ_UNCOMMITTED, request_timeout=ASK_S)
    return {place.partition: answer(future, ASK_S + 5.0).offset for place, future in futures.items()}


class _Partition:
    """What has been read of one partition. Records count once the checkpoint of their transaction follows."""

    __slots__ = ("_checkpoint", "_pending", "_records")

    def __init__(self) -> None:
        self._records: dict[bytes, bytes] = {}
        self._pending: dict[bytes, bytes | None] = {}
        self._checkpoint: Checkpoint | None = None

    @property
    def owner(self) -> str:
        return "" if self._checkpoint is None else self._checkpoint.core

    def take(self, message: Any) -> None:
        key, value = message.key() or b"", message.value()
        if state.is_parked(key):
            self._put(key, value)
            return
        if key != state.CHECKPOINT:
            self._pending[key] = value
            return
        read = None if value is None else state.decode(key, value)
        if read is None:
            log.error("%s/%d: a checkpoint cannot be read", message.topic(), message.partition())
            return
        self._checkpoint = read[1]  # type: ignore[assignment]  # a checkpoint, by its key
        for name, content in self._pending.items():
            self._put(name, content)
        self._pending.clear()

    def _put(self, key: bytes, value: bytes | None) -> None:
        if value is None:
            self._records.pop(key, None)
        else:
            self._records[key] = value

    def state(self, stream: str) -> PartitionState:
        checkpoint = self._checkpoint
        if checkpoint is None or checkpoint.stream == stream:
            return PartitionState(checkpoint, self._records)
        return PartitionState(None, self._records, made_anew=True)


def read_state(config: KafkaConfig, topic: StreamInfo, stream: StreamInfo) -> dict[int, PartitionState]:
    """The state of all partitions, as a core needs it before its tail starts. Blocks. Raises Unreachable."""
    try:
        found = StateReader(config, topic, stream).read(range(topic.partitions))
        ends = _ends(config, stream.topic, found)
    except KafkaException as error:
        raise Unreachable(f"Kafka at {config.brokers}: {error.args[0].str()}") from error
    return {number: within(partition, number, ends[number]) for number, partition in found.items()}


def within(found: PartitionState, number: int, end: int) -> PartitionState:
    """The same, unless the log ends before the checkpoint: brokers have lost what was acknowledged, and what is written there from now on
    is news. `end` is negative if it is not known."""
    checkpoint = found.checkpoint
    if checkpoint is None or not 0 <= end < checkpoint.offset:
        return found
    log.error("partition %d of the log ends at %d, and the state is as of %d: brokers have lost records", number, end, checkpoint.offset)
    return msgspec.structs.replace(found, checkpoint=msgspec.structs.replace(checkpoint, offset=end))


def told(found: Mapping[int, PartitionState]) -> list[StateRead]:
    """The same as events for the node."""
    return [
        StateRead(number, None, {})
        if partition.checkpoint is None
        else StateRead(
            number, partition.checkpoint.offset, dict(partition.records), partition.checkpoint.quiet_from, partition.checkpoint.time
        )
        for number, partition in found.items()
    ]

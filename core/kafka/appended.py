"""Exactly once in effect, however long a mapping was away: what the commits say, and a look at the log from there.

Readers of the log leave out what is appended twice under the same id, but only within four minutes. So the commit of a partition says,
beside its offset, where each partition of the log ended before anything at or after that offset was appended. Whoever takes the partition
on reads the log from there and does not append again what it finds.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from confluent_kafka import KafkaError, KafkaException, TopicPartition

from core.kafka.config import KafkaConfig
from core.kafka.consumer import open_consumer, read_batch
from core.kafka.records import read_headers
from core.kafka.topics import StreamInfo

MAX_METADATA = 4_000
"""Longest metadata of a commit, in characters; brokers refuse more than 4,096 unless told otherwise. It is enough for 400 partitions of the
log. Beyond it: commits say no ends, and only the four minutes hold."""
BATCH = 1_000
CALL_S = 10.0

Place = tuple[str, int]
"""Topic and partition of a mapped record."""


class Committed(NamedTuple):
    """The metadata of a commit. `partitions`: how many the topic had; `floors`: None when the log is not that one any more."""

    partitions: int
    floors: list[int] | None


def write_metadata(log: StreamInfo, partitions: int, floors: Sequence[int]) -> str:
    """`1:<partitions>:<stream of the log>:<varints in base64>`; without the last two if that would be too long."""
    packed = bytearray()
    for floor in floors:
        rest = floor
        while rest >= 0x80:
            packed.append(rest & 0x7F | 0x80)
            rest >>= 7
        packed.append(rest)
    text = f"1:{partitions}:{log.stream}:{base64.b64encode(packed).decode()}"
    return text if len(text) <= MAX_METADATA else f"1:{partitions}"


def read_metadata(text: str | None, log: StreamInfo) -> Committed | None:
    """None for what another program has committed."""
    parts = (text or "").split(":")
    if len(parts) not in (2, 4) or parts[0] != "1" or not parts[1].isascii() or not parts[1].isdigit():
        return None
    partitions = int(parts[1])
    if len(parts) == 2 or parts[2] != log.stream:
        return Committed(partitions, None)
    with contextlib.suppress(binascii.Error, ValueError):
        floors = _varints(base64.b64decode(parts[3], validate=True))
        if len(floors) == log.partitions:
            return Committed(partitions, floors)
    return None


def _varints(packed: bytes) -> list[int]:
    """Raises ValueError."""
    found: list[int] = []
    value = shift = 0
    for byte in packed:
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            found.append(value)
            value = shift = 0
    if shift:
        raise ValueError("it ends within a number")
    return found


def source_of(publish_id: str) -> tuple[Place, int] | None:
    """Place and offset of the record behind a publish; None if it is none of a mapping's."""
    if not publish_id.startswith("m:"):
        return None
    topic, _, rest = publish_id[2:].partition(":")
    partition, _, offset = rest.partition(":")
    try:
        return (topic, int(partition)), int(offset)
    except ValueError:
        return None


class _Found:
    """Log keys by offset, for the first `most` offsets at or after the mark: more could not have been under way."""

    __slots__ = ("_ceiling", "_mark", "_most", "keys")

    def __init__(self, mark: int, most: int) -> None:
        self._mark = mark
        self._most = most
        self._ceiling: int | None = None
        self.keys: dict[int, set[bytes]] = {}

    def add(self, offset: int, key: bytes) -> None:
        if offset < self._mark or (self._ceiling is not None and offset > self._ceiling):
            return
        self.keys.setdefault(offset, set()).add(key)
        if len(self.keys) > 2 * self._most:
            kept = sorted(self.keys)[: self._most]
            self._ceiling = kept[-1]
            self.keys = {each: self.keys[each] for each in kept}


class LogScan:
    """Reads the log from `floors` to where it ends now, in steps, for partitions that begin at `marks`. Belongs to one thread."""

    def __init__(self, config: KafkaConfig, log: StreamInfo, floors: Sequence[int], marks: dict[Place, int], most: int) -> None:
        """`most`: records of one partition that can have been appended and not committed. Raises KafkaException."""
        self._found = {place: _Found(mark, most) for place, mark in marks.items()}
        self._ends: dict[int, int] = {}
        self.records = 0
        """Read so far."""
        self._consumer: Any = open_consumer(config, "mapping-look", enable_partition_eof=True, auto_offset_reset="earliest")
        try:
            starts = []
            for partition, floor in enumerate(floors):
                low, end = self._consumer.get_watermark_offsets(TopicPartition(log.topic, partition), timeout=CALL_S)
                if max(low, floor) < end:
                    starts.append(TopicPartition(log.topic, partition, max(low, floor)))
                    self._ends[partition] = end
            self._consumer.assign(starts)
        except BaseException:
            self._consumer.close()
            raise

    @property
    def places(self) -> set[Place]:
        return set(self._found)

    def keys(self, place: Place) -> dict[int, set[bytes]]:
        """Log keys under which the records of `place` are there already, by offset."""
        return self._found[place].keys

    def step(self, budget_s: float) -> bool:
        """Read for about `budget_s`. True: all is read. Raises KafkaException."""
        until = time.monotonic() + budget_s
        while self._ends:
            for message in read_batch(self._consumer, BATCH, max(0.0, until - time.monotonic())):
                self._see(message)
            if time.monotonic() >= until:
                break
        return not self._ends

    def _see(self, message: Any) -> None:
        error = message.error()
        partition = message.partition()
        if error is not None:
            if error.code() == KafkaError._PARTITION_EOF:
                self._ends.pop(partition, None)
            elif error.fatal():
                raise KafkaException(error)
            return
        self.records += 1
        _, publish_id = read_headers(message.headers() or [])
        source = source_of(publish_id)
        if source is not None and (found := self._found.get(source[0])) is not None:
            found.add(source[1], message.key() or b"")
        if message.offset() + 1 >= self._ends.get(partition, 0):
            self._ends.pop(partition, None)

    def close(self) -> None:
        self._consumer.close()

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
from core.kafka.records import headers_of, read_headers
from core.kafka.topics import StreamInfo
from relay.model.channel import log_key

MAX_METADATA = 4_000
"""Longest metadata of a commit, in characters; brokers refuse more than 4,096 unless told otherwise. It is enough for 400 partitions of the
log. Beyond it: commits say no ends, and only the four minutes hold."""
BATCH = 1_000
CALL_S = 10.0

Place = tuple[str, int]
"""Topic and partition of a mapped record."""


class Committed(NamedTuple):
    """The metadata of a commit. `partitions`: how many the topic had; `floors`: None when the log is not that one any more; `seek`: the
    number of the last seek that the partition has carried out, 0 if none."""

    partitions: int
    floors: list[int] | None
    seek: int = 0


def write_metadata(log: StreamInfo, partitions: int, floors: Sequence[int], seek: int = 0) -> str:
    """`1:<partitions>:<stream of the log>:<varints in base64>`, without the last two if that would be too long. After a seek
    `2:<its number>:` stands in place of `1:`."""
    packed = bytearray()
    for floor in floors:
        rest = floor
        while rest >= 0x80:
            packed.append(rest & 0x7F | 0x80)
            rest >>= 7
        packed.append(rest)
    begin = f"2:{seek}:{partitions}" if seek else f"1:{partitions}"
    text = f"{begin}:{log.stream}:{base64.b64encode(packed).decode()}"
    return text if len(text) <= MAX_METADATA else begin


def read_metadata(text: str | None, log: StreamInfo) -> Committed | None:
    """None for what another program has committed."""
    version, *parts = (text or "").split(":")
    seek = 0
    if version == "2" and parts and _digits(parts[0]):
        seek = int(parts.pop(0))
    elif version != "1":
        return None
    if len(parts) not in (1, 3) or not _digits(parts[0]):
        return None
    partitions = int(parts[0])
    if len(parts) == 1 or parts[1] != log.stream:
        return Committed(partitions, None, seek)
    with contextlib.suppress(binascii.Error, ValueError):
        floors = _varints(base64.b64decode(parts[2], validate=True))
        if len(floors) == log.partitions:
            return Committed(partitions, floors, seek)
    return None


def _digits(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 20


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


class Source(NamedTuple):
    """Where a publish came from: the mapping, the place and offset of the record, the number of the seek that led there."""

    mapping: str
    place: Place
    offset: int
    seek: int


def source_of(publish_id: str) -> Source | None:
    """None if it is none of a mapping's."""
    parts = publish_id.split(":")
    if parts[0] not in ("m", "k") or len(parts) not in (5, 6):
        return None
    try:
        partition, offset, *seek = map(int, parts[3:])
    except ValueError:
        return None
    return Source(parts[1], (parts[2], partition), offset, seek[0] if seek else 0)


class Look(NamedTuple):
    """What is looked for of one partition: records at or after `mark` that were appended since the seek of this number."""

    mark: int
    seek: int


class _Found:
    """The first `most` offsets at or after the mark: more could not have been under way."""

    __slots__ = ("_ceiling", "_mark", "_most", "offsets")

    def __init__(self, mark: int, most: int) -> None:
        self._mark = mark
        self._most = most
        self._ceiling: int | None = None
        self.offsets: set[int] = set()

    def add(self, offset: int) -> None:
        if offset < self._mark or (self._ceiling is not None and offset > self._ceiling):
            return
        self.offsets.add(offset)
        if len(self.offsets) > 2 * self._most:
            kept = sorted(self.offsets)[: self._most]
            self._ceiling = kept[-1]
            self.offsets = set(kept)


class LogScan:
    """Reads the log from `floors` to where it ends now, in steps, for partitions of one mapping. Belongs to one thread."""

    def __init__(
        self, config: KafkaConfig, log: StreamInfo, floors: Sequence[int], looks: dict[Place, Look], most: int, *, app: str, mapping: str
    ) -> None:
        """`most`: records of one partition that can have been appended and not committed. Raises KafkaException."""
        self._looks = looks
        self._found = {place: _Found(look.mark, most) for place, look in looks.items()}
        self._app = log_key(app, "")
        self._mapping = mapping
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

    def offsets(self, place: Place) -> set[int]:
        """Which records of `place` are there already."""
        return self._found[place].offsets

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
        _, publish_id = read_headers(headers_of(message) or [])
        source = source_of(publish_id)
        if source is not None and source.mapping == self._mapping and (message.key() or b"").startswith(self._app):
            look = self._looks.get(source.place)
            if look is not None and look.seek == source.seek:
                self._found[source.place].add(source.offset)
        if message.offset() + 1 >= self._ends.get(partition, 0):
            self._ends.pop(partition, None)

    def close(self) -> None:
        self._consumer.close()

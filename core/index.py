"""The index: what the tail has read lately, by channel. Replay, rewind and history read here and nowhere else."""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from core.log import LogRecord


class Slice(NamedTuple):
    """Records of one channel, in the order that was asked for. `more`: a limit cut it; ask again from the last record on."""

    records: list[LogRecord]
    more: bool


class Index(Protocol):
    """Holds the records of the last `retention_s` seconds of broker time, and says what it does not hold rather than leaving it out.

    A fault of its disk costs the index (`covers_from` moves up, `errors` counts), never a message and never a wrong answer.
    """

    errors: int

    def begin(self, stream: str, partition: int, offset: int) -> None:
        """The tail of this partition began at `offset`; needed for partitions without traffic. Safe to call late or twice."""
        ...

    def put(self, records: Sequence[LogRecord], befores: Sequence[int]) -> None:
        """Take in records that the fold accepted (no duplicates), in offset order within a partition. Never raises.

        `befores`: for each record, an offset after which its channel has none until this one (see `core.recency.Recency.saw`).
        """
        ...

    def lost(self, stream: str, partition: int, offset: int) -> None:
        """Records before `offset` were never read (`core.events.Gap`): reads that would need them are expired."""
        ...

    def covers_from(self, stream: str, partition: int) -> int | None:
        """The lowest offset from which every accepted record is held; None: nothing is known of the partition yet."""
        ...

    def read_after(self, stream: str, partition: int, key: bytes, offset: int, limit_records: int, limit_bytes: int) -> Slice | None:
        """The channel's records with a higher offset. None: some of them may be gone ("expired"). One record is given however large.

        An offset below `covers_from` will do if the first record that is held is known to be the next one after it: a client that was
        away for a minute may have seen the last message of a quiet channel an hour ago.
        """
        ...

    def read_before(self, stream: str, partition: int, key: bytes, offset: int, limit_records: int, limit_bytes: int) -> Slice:
        """The channel's records with a lower offset, newest first, down to `covers_from`. One record is given however large."""
        ...

    def head(self, stream: str, partition: int, key: bytes) -> int | None:
        """Offset of the channel's newest record that is held, if any."""
        ...

    def hold(self, until_ms: float) -> None:
        """Nothing is forgotten for its age before `until_ms` (as `now_ms` below); for want of room it still is."""
        ...

    def expire(self, now_ms: int) -> None:
        """Forget what is older than the retention. `now_ms` is broker time, or wall clock where there is no traffic."""
        ...

    def close(self) -> None: ...


class MemoryIndex:
    """The index of journeys and of a core without a disk. One deque per channel; forgets by age and beyond `max_records` in all."""

    def __init__(self, retention_s: float = 150.0, max_records: int = 200_000) -> None:
        self.errors = 0
        self._retention_ms = int(retention_s * 1000)
        self._max_records = max_records
        self._channels: dict[tuple[str, int, bytes], deque[LogRecord]] = {}
        self._befores: dict[tuple[str, int, bytes], deque[int]] = {}
        self._order: deque[LogRecord] = deque()
        self._covers: dict[tuple[str, int], int] = {}
        self._forgotten: dict[tuple[str, int], int] = {}
        self._newest_ms = 0
        self._hold_ms = 0.0

    def begin(self, stream: str, partition: int, offset: int) -> None:
        place = (stream, partition)
        self._covers[place] = max(min(offset, self._covers.get(place, offset)), self._forgotten.get(place, 0))

    def put(self, records: Sequence[LogRecord], befores: Sequence[int]) -> None:
        for record, before in zip(records, befores, strict=True):
            place = (record.stream, record.partition)
            self._covers.setdefault(place, record.offset)
            self._channels.setdefault((*place, record.key), deque()).append(record)
            self._befores.setdefault((*place, record.key), deque()).append(before)
            self._order.append(record)
            self._newest_ms = max(self._newest_ms, record.timestamp)
        self.expire(self._newest_ms)

    def lost(self, stream: str, partition: int, offset: int) -> None:
        place = (stream, partition)
        self._forgotten[place] = max(self._forgotten.get(place, 0), offset)
        self._covers[place] = max(self._covers.get(place, 0), offset)

    def covers_from(self, stream: str, partition: int) -> int | None:
        return self._covers.get((stream, partition))

    def read_after(self, stream: str, partition: int, key: bytes, offset: int, limit_records: int, limit_bytes: int) -> Slice | None:
        covers = self._covers.get((stream, partition))
        if covers is None:
            return None
        channel = self._channels.get((stream, partition, key), ())
        first = bisect_left(channel, max(offset + 1, covers), key=lambda record: record.offset)
        if offset + 1 < covers and (first == len(channel) or self._befores[stream, partition, key][first] > offset):
            return None
        found: list[LogRecord] = []
        size = 0
        for at in range(first, len(channel)):
            record = channel[at]
            size += len(record.value)
            if found and (len(found) >= limit_records or size > limit_bytes):
                return Slice(found, more=True)
            found.append(record)
        return Slice(found, more=False)

    def read_before(self, stream: str, partition: int, key: bytes, offset: int, limit_records: int, limit_bytes: int) -> Slice:
        channel = self._channels.get((stream, partition, key), ())
        covers = self._covers.get((stream, partition), 0)
        found: list[LogRecord] = []
        size = 0
        for at in range(bisect_left(channel, offset, key=lambda record: record.offset) - 1, -1, -1):
            record = channel[at]
            if record.offset < covers:
                break
            size += len(record.value)
            if found and (len(found) >= limit_records or size > limit_bytes):
                return Slice(found, more=True)
            found.append(record)
        return Slice(found, more=False)

    def head(self, stream: str, partition: int, key: bytes) -> int | None:
        channel = self._channels.get((stream, partition, key))
        return channel[-1].offset if channel else None

    def hold(self, until_ms: float) -> None:
        self._hold_ms = until_ms

    def expire(self, now_ms: int) -> None:
        horizon = 0 if now_ms < self._hold_ms else now_ms - self._retention_ms
        while self._order and (self._order[0].timestamp < horizon or len(self._order) > self._max_records):
            record = self._order.popleft()
            place = (record.stream, record.partition)
            channel = self._channels[(*place, record.key)]
            channel.popleft()
            self._befores[(*place, record.key)].popleft()
            if not channel:
                del self._channels[(*place, record.key)], self._befores[(*place, record.key)]
            self.lost(*place, record.offset + 1)

    def close(self) -> None:
        self._channels.clear()
        self._befores.clear()
        self._order.clear()

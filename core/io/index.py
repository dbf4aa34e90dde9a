"""The index on disk: one RocksDB per minute of broker time, without write-ahead log, dropped whole when it is past retention.

Why so: a record is wanted for two and a half minutes, mostly not at all, and the log has it anyway. Nothing is ever compacted or deleted
one by one; what a crash loses is read again from the log at the next start, which begins with an empty directory.

The newest records of a minute are held in memory by channel, and go to its database as blocks of neighbours: what costs there is the number
of entries, not their size. Opening a database takes 10 ms and dropping one 80 ms, which therefore happen on a thread of their own.
"""

from __future__ import annotations

import fcntl
import shutil
import struct
import sys
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from itertools import count
from operator import attrgetter
from pathlib import Path
from typing import Any, TextIO

import msgspec
from rocksdict import DBCompressionType, Options, Rdict, ReadOptions, WriteBatch, WriteOptions

from core.index import Slice
from core.log import LogRecord

BUCKET_MS = 60_000
MOST_BUCKETS = 20
"""Minutes that are held at once, however long nothing is past retention (`hold`): each has some open files, and its records in memory."""
KEY = struct.Struct(">BHqQ")
"""Stream (in order of appearance), partition, hash of the channel, offset of the block's last record: a channel's blocks lie side by side,
in order."""
channel_hash = hash
"""64 bits of a channel's key, the same for as long as the process lives, which is as long as its index does."""
LAST_OFFSET = 0xFFFF_FFFF_FFFF_FFFF
HELD_BYTES = 8 * 1_048_576
"""A minute's records that are held in memory before they begin to go to its database, beside at most as many that are on their way."""
HELD_OVERHEAD = 280
"""Bytes that a record costs there beside its value and its publish id."""
CHANNEL_OVERHEAD = 200
"""Bytes that a channel costs there beside its key and its records."""
BLOCK_RECORDS = 32
"""Records of a block, at most: whoever wants one of them reads them all."""
BLOCK_BYTES = 32_768
"""Bytes of their values, at most, unless one alone has more."""

_encode = msgspec.msgpack.Encoder().encode
_offset = attrgetter("offset")
_timestamp = attrgetter("timestamp")


def _options() -> Options:
    options = Options(raw_mode=True)
    options.create_if_missing(True)
    options.set_disable_auto_compactions(True)
    options.set_compression_type(DBCompressionType.none())
    # One thread writes: 0.2 to 0.4 µs a record less.
    options.set_allow_concurrent_memtable_write(False)
    options.set_enable_write_thread_adaptive_yield(False)
    options.set_write_buffer_size(8 * 1_048_576)
    options.set_max_write_buffer_number(6)
    # With compaction off, files pile up on level 0 on purpose: writing must never wait for them.
    options.set_level_zero_slowdown_writes_trigger(1 << 30)
    options.set_level_zero_stop_writes_trigger(1 << 30)
    options.set_keep_log_file_num(1)
    return options


class Entry(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """A record of a channel. `before`: see `Index.put`."""

    offset: int
    before: int
    timestamp: int
    kind: int
    id: str
    value: bytes


_decode = msgspec.msgpack.Decoder(tuple[bytes, list[Entry]]).decode
"""A block: its channel and the channel's records."""


class _Place:
    """One partition of one stream."""

    __slots__ = ("covers", "minute", "partition", "started", "stream")

    def __init__(self, stream: int, partition: int) -> None:
        self.stream = stream
        self.partition = partition
        self.minute = 0
        """Of its newest bucket. It never goes back, though a new leader's clock may, so that buckets are in offset order."""
        self.started: int | None = None
        self.covers = 0
        """Everything before it may be gone."""

    def lost(self, offset: int) -> None:
        self.covers = max(self.covers, offset)


_Held = dict[_Place, dict[bytes, list[Entry]]]
"""Records by channel, in order."""


def _neighbours(held: list[Entry], at: int) -> list[Entry]:
    """Those from `at` on that are stored as one block."""
    entries = held[at : at + BLOCK_RECORDS]
    if sum([len(entry.value) for entry in entries]) > BLOCK_BYTES:
        size = 0
        for count, entry in enumerate(entries):
            size += len(entry.value)
            if count and size > BLOCK_BYTES:
                return entries[:count]
    return entries


class _Bucket:
    """What is held of one minute: a database, in memory what goes there next, and how far each partition goes."""

    __slots__ = ("db", "fresh", "held", "last", "leaving", "path", "size")

    def __init__(self, path: Path) -> None:
        self.path = path
        self.db = Rdict(str(path), _options())
        self.last: dict[_Place, int] = {}
        self.size = 0
        """Bytes in the database."""
        self.fresh: _Held = {}
        self.held = 0
        """Bytes of what is fresh."""
        self.leaving: _Held = {}
        """On its way to the database: older than all that is fresh."""

    def turn(self) -> None:
        """All that is fresh is to leave; nothing is leaving."""
        self.leaving, self.fresh, self.held = self.fresh, {}, 0

    def leave(self, size: int, batch: WriteBatch) -> tuple[dict[_Place, int], int]:
        """Move what takes `size` bytes here, or a block more, to `batch`: of each channel the oldest first. Returns the highest offset of
        each partition that is moved, and how many bytes it takes there."""
        moved: dict[_Place, int] = {}
        taken = 0
        put, pack = batch.put, KEY.pack
        while size > 0 and self.leaving:
            place, channels = next(iter(self.leaving.items()))
            highest = -1
            while size > 0 and channels:
                channel, held = channels.popitem()
                hashed = channel_hash(channel)
                at = 0
                while size > 0 and at < len(held):
                    entries = _neighbours(held, at) if len(held) > 1 else held
                    at += len(entries)
                    block = _encode((channel, entries))
                    put(pack(place.stream, place.partition, hashed, entries[-1].offset), block)
                    size -= len(block) + len(entries) * HELD_OVERHEAD
                    taken += len(block) + KEY.size
                highest = max(highest, entries[-1].offset)
                if at < len(held):
                    del held[:at]
                    channels[channel] = held
                else:
                    size -= CHANNEL_OVERHEAD
            moved[place] = highest
            if not channels:
                del self.leaving[place]
        return moved, taken

    def read(self, place: _Place, key: bytes, offset: int) -> Iterator[Entry]:
        """A channel's records from an offset on. Raises if the database is damaged."""
        for held in self._stored(place, key, offset):
            yield from held[bisect_left(held, offset, key=_offset) :]
        for channels in (self.leaving, self.fresh):
            held = channels.get(place, {}).get(key, [])
            for at in range(bisect_left(held, offset, key=_offset), len(held)):
                yield held[at]

    def read_backwards(self, place: _Place, key: bytes, offset: int) -> Iterator[Entry]:
        """A channel's records from an offset on downwards. Raises if the database is damaged."""
        for channels in (self.fresh, self.leaving):
            held = channels.get(place, {}).get(key, [])
            for at in range(bisect_right(held, offset, key=_offset) - 1, -1, -1):
                yield held[at]
        for held in self._stored_backwards(place, key, offset):
            yield from reversed(held[: bisect_right(held, offset, key=_offset)])

    def _stored(self, place: _Place, key: bytes, offset: int) -> Iterator[list[Entry]]:
        """A channel's blocks that end at an offset or behind it."""
        hashed = channel_hash(key)
        # Exclusive, so the record at the highest offset that there could ever be is out of reach. The driver points into `end`, which must
        # live as long as the iterator.
        end = KEY.pack(place.stream, place.partition, hashed, LAST_OFFSET)
        blocks = self.db.iter(_until(end))
        blocks.seek(KEY.pack(place.stream, place.partition, hashed, offset))
        while blocks.valid():
            channel, entries = _decode(blocks.value())
            if channel == key:  # and not another channel of the same hash
                yield entries
            blocks.next()
        blocks.status()  # raises if it ended because of damage rather than at its end

    def _stored_backwards(self, place: _Place, key: bytes, offset: int) -> Iterator[list[Entry]]:
        """A channel's blocks that begin at an offset or before it, and perhaps one more, the last first."""
        hashed = channel_hash(key)
        first, end = (KEY.pack(place.stream, place.partition, hashed, at) for at in (0, LAST_OFFSET))
        blocks = self.db.iter(ReadOptions())
        # The block that has the offset ends at it or behind it; those of another channel of the same hash may end between.
        blocks.seek(KEY.pack(place.stream, place.partition, hashed, offset))
        while blocks.valid() and blocks.key() < end and _decode(blocks.value())[0] != key:
            blocks.next()
        blocks.status()
        if not blocks.valid() or blocks.key() >= end:
            blocks.seek_for_prev(end)
        while blocks.valid() and blocks.key() >= first:  # the driver's own lower bound finds nothing at all
            channel, entries = _decode(blocks.value())
            if channel == key:
                yield entries
            blocks.prev()
        blocks.status()

    def drop(self) -> None:
        with suppress(Exception):  # a disk that is gone has nothing to delete
            self.db.close()
        shutil.rmtree(self.path, ignore_errors=True)


class RocksIndex:
    """`core.index.Index` in `directory`, which it empties first and holds a lock on. Raises OSError if it cannot be used at all.

    Above `max_bytes` the oldest minute goes early: reads that would need it are expired. One thread opens and drops databases; it ends at
    `close`.
    """

    def __init__(self, directory: Path, retention_s: float = 150.0, max_bytes: int = 4_294_967_296) -> None:
        self.errors = 0
        self._directory = directory
        self._retention_ms = int(retention_s * 1000)
        self._max_bytes = max_bytes
        self._places: dict[tuple[str, int], _Place] = {}
        self._streams: dict[str, int] = {}
        self._buckets: dict[int, _Bucket] = {}
        self._next: tuple[int, Future[_Bucket]] | None = None
        """The bucket of the minute to come, opened ahead of time."""
        self._opened = count()
        self._size = 0
        self._now_ms = 0
        self._hold_ms = 0.0
        self._write = WriteOptions()
        self._write.disable_wal = True  # type: ignore[method-assign, assignment]  # a property, whatever its stub says
        self._thread = ThreadPoolExecutor(1, "tidegate-index")
        self._lock = self._claim()

    def _claim(self) -> TextIO:
        self._directory.mkdir(parents=True, exist_ok=True)
        lock = (self._directory / "lock").open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.close()
            raise OSError(f"index directory {self._directory} is in use by another core") from None
        for old in self._directory.glob("minute-*"):
            shutil.rmtree(old, ignore_errors=True)
        return lock

    # --- in ---------------------------------------------------------------------------------------------------------------------------

    def begin(self, stream: str, partition: int, offset: int) -> None:
        place = self._place(stream, partition)
        place.started = offset if place.started is None else min(offset, place.started)

    def lost(self, stream: str, partition: int, offset: int) -> None:
        self._place(stream, partition).lost(offset)

    def put(self, records: Sequence[LogRecord], befores: Sequence[int]) -> None:
        if not records:
            return
        self._now_ms = max(self._now_ms, *map(_timestamp, records))
        horizon = self._horizon()
        oldest = self._first_retained() if self._held() else 0
        """All that is past retention and held nonetheless goes here: a look-back may span days."""
        found: dict[int, _Bucket | None] = {}
        """By minute. None: past retention, or there is no disk."""
        bucket: _Bucket | None = None
        place: _Place | None = None
        channels: dict[bytes, list[Entry]] = {}
        at_partition = -1
        at_stream = ""
        until = size = taken = 0
        for record, before in zip(records, befores, strict=True):
            stream, partition = record.stream, record.partition
            offset, timestamp = record.offset, record.timestamp
            if place is None or timestamp >= until or partition != at_partition or stream != at_stream:  # they come in runs
                if bucket is not None:
                    bucket.held += size
                    taken += size
                    size = 0
                place = self._places.get((stream, partition)) or self._place(stream, partition)
                at_stream, at_partition = stream, partition
                if place.started is None:
                    place.started = offset
                minute = place.minute = max(place.minute, timestamp // BUCKET_MS, oldest)
                until = (minute + 1) * BUCKET_MS
                if minute not in found:
                    # Past retention: read in the look-back of a partition that lags behind the others
                    found[minute] = None if minute < horizon else self._bucket(minute)
                bucket = found[minute]
                if bucket is not None:
                    channels = bucket.fresh.setdefault(place, {})
            if bucket is None:
                place.lost(offset + 1)
                continue
            value = record.value
            entry = Entry(offset, before, timestamp, record.kind, record.id, value)
            held = channels.get(record.key)
            if held is None:
                channels[record.key] = [entry]
                size += len(record.key) + CHANNEL_OVERHEAD
            else:
                held.append(entry)
            bucket.last[place] = offset
            size += len(value) + len(record.id) + HELD_OVERHEAD
        if bucket is not None:
            bucket.held += size
            taken += size
        for bucket in found.values():
            if bucket is not None:
                if bucket.held >= HELD_BYTES:
                    self._store(bucket, sys.maxsize)
                    bucket.turn()
                self._store(bucket, taken * 3 // 2)  # a part each time, so that none takes long, and all have left by the next turn
        self.expire(self._now_ms)

    def _store(self, bucket: _Bucket, size: int) -> None:
        """Move about `size` bytes of what is leaving to the database."""
        if not bucket.leaving:
            return
        batch = WriteBatch(raw_mode=True)
        moved, taken = bucket.leave(size, batch)
        try:
            bucket.db.write(batch, self._write)
        except Exception:
            self.errors += 1
            for place, offset in moved.items():
                place.lost(offset + 1)
            return
        bucket.size += taken
        self._size += taken

    def _bucket(self, minute: int) -> _Bucket | None:
        bucket = self._buckets.get(minute)
        if bucket is None:
            ahead, self._next = self._next, None
            try:
                if ahead is not None and ahead[0] == minute:
                    bucket = ahead[1].result()
                else:
                    if ahead is not None:
                        self._thread.submit(_drop_unused, ahead[1])
                    bucket = self._open(minute)
            except Exception:
                self.errors += 1
                return None
            self._buckets[minute] = bucket
            if minute == max(self._buckets):
                self._next = (minute + 1, self._thread.submit(self._open, minute + 1))
        return bucket

    def _open(self, minute: int) -> _Bucket:
        # A path that was never used: the one before may still be on its way out. Both threads come here.
        path = self._directory / f"minute-{minute}-{next(self._opened)}"
        try:
            return _Bucket(path)
        except Exception:  # the next batch tries again, and so on for as long as the disk is full
            shutil.rmtree(path, ignore_errors=True)
            raise

    def _place(self, stream: str, partition: int) -> _Place:
        place = self._places.get((stream, partition))
        if place is None:
            place = self._places[stream, partition] = _Place(self._streams.setdefault(stream, len(self._streams)), partition)
        return place

    # --- out --------------------------------------------------------------------------------------------------------------------------

    def covers_from(self, stream: str, partition: int) -> int | None:
        place = self._places.get((stream, partition))
        if place is None or place.started is None:
            return None
        return max(place.started, place.covers)

    def read_after(self, stream: str, partition: int, key: bytes, offset: int, limit_records: int, limit_bytes: int) -> Slice | None:
        covers = self.covers_from(stream, partition)
        if covers is None:
            return None
        place = self._places[stream, partition]
        first = max(offset + 1, covers)
        whole = offset + 1 >= covers
        found: list[LogRecord] = []
        size = 0
        for minute in sorted(self._buckets):
            bucket = self._buckets[minute]
            if bucket.last.get(place, -1) <= offset:
                continue
            try:
                for each in bucket.read(place, key, first):
                    if not whole and each.before > offset:
                        return None
                    whole = True
                    size += len(each.value)
                    if found and (len(found) >= limit_records or size > limit_bytes):
                        return Slice(found, more=True)
                    found.append(LogRecord(stream, partition, each.offset, each.timestamp, key, each.value, each.kind, each.id))
            except Exception:
                self.errors += 1
                self._lose(minute)
                return None
        return Slice(found, more=False) if whole else None

    def read_before(self, stream: str, partition: int, key: bytes, offset: int, limit_records: int, limit_bytes: int) -> Slice:
        covers = self.covers_from(stream, partition)
        found: list[LogRecord] = []
        if covers is None or offset <= covers:
            return Slice(found, more=False)
        place = self._places[stream, partition]
        size = 0
        for minute in sorted(self._buckets, reverse=True):
            bucket = self._buckets[minute]
            if place not in bucket.last:
                continue
            try:
                for each in bucket.read_backwards(place, key, offset - 1):
                    if each.offset < covers:
                        break
                    size += len(each.value)
                    if found and (len(found) >= limit_records or size > limit_bytes):
                        return Slice(found, more=True)
                    found.append(LogRecord(stream, partition, each.offset, each.timestamp, key, each.value, each.kind, each.id))
            except Exception:
                self.errors += 1
                self._lose(minute)
                break  # what was found is whole: it is newer than all that is lost
        return Slice(found, more=False)

    def head(self, stream: str, partition: int, key: bytes) -> int | None:
        place = self._places.get((stream, partition))
        if place is None:
            return None
        for minute in sorted(self._buckets, reverse=True):
            if place not in self._buckets[minute].last:
                continue
            try:
                for entry in self._buckets[minute].read_backwards(place, key, LAST_OFFSET):
                    return entry.offset
            except Exception:
                self.errors += 1
                self._lose(minute)
                return None
        return None

    # --- away -------------------------------------------------------------------------------------------------------------------------

    def hold(self, until_ms: float) -> None:
        self._hold_ms = until_ms

    def _held(self) -> bool:
        """Whether nothing is forgotten for its age."""
        return self._now_ms < self._hold_ms

    def _first_retained(self) -> int:
        """The first minute that is not past retention."""
        return (self._now_ms - self._retention_ms) // BUCKET_MS

    def _horizon(self) -> int:
        """The first minute that is not to be forgotten for its age."""
        return 0 if self._held() else self._first_retained()

    def expire(self, now_ms: int) -> None:
        self._now_ms = max(self._now_ms, now_ms)
        horizon = self._horizon()
        while self._buckets and (min(self._buckets) < horizon or self._size > self._max_bytes or len(self._buckets) > MOST_BUCKETS):
            self._lose(min(self._buckets))

    def _lose(self, minute: int) -> None:
        """The bucket goes, and with it everything before it: a reader may not skip a hole."""
        for earlier in sorted(self._buckets):
            if earlier > minute:
                return
            bucket = self._buckets.pop(earlier)
            self._size -= bucket.size
            for place, offset in bucket.last.items():
                place.lost(offset + 1)
            self._thread.submit(bucket.drop)

    def close(self) -> None:
        """Nothing is kept. Blocks until databases are closed, some tens of milliseconds."""
        for minute in sorted(self._buckets):
            self._lose(minute)
        if self._next is not None:
            self._thread.submit(_drop_unused, self._next[1])
            self._next = None
        self._thread.shutdown(wait=True)
        self._lock.close()


def _until(end: bytes) -> Any:
    options = ReadOptions()
    options.set_iterate_upper_bound(end)
    return options


def _drop_unused(opening: Future[_Bucket]) -> None:
    """On the thread, which has opened it by then."""
    if opening.exception() is None:
        opening.result().drop()

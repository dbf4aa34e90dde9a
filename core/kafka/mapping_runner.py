"""Runs the mappings: reads your topics as a consumer group each, appends to the log, commits what has become durable there.

Two halves. A thread per mapping owns the consumer: it reads, maps, and commits. The loop owns the lanes, one per partition read: they
append in order and keep the low-water mark, behind which everything is durable. `LogAppends` is the mappings' share of the core's
`LogProducer`.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import functools
import itertools
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from typing import Any, Protocol

from confluent_kafka import KafkaError, KafkaException, TopicPartition

from core.events import Event, Overfull, Reported
from core.kafka.config import KafkaConfig
from core.kafka.consumer import KafkaThread, open_consumer, read_batch
from core.kafka.logs import log
from core.kafka.outlet import Deliver
from core.kafka.targets import TargetTopics
from core.mappings import Mapping, Skipped, SourceRecord
from relay.model.channel import partition_of
from relay.model.limits import CoreLimits
from relay.model.message import Kind

CALL_S = 10.0
"""Longest wait for one answer of Kafka."""
COMMIT_S = 1.0
"""Time between commits. What is not committed is appended again after a crash, under the same ids."""
POLL_S = 0.1
"""Longest wait for a record, and so for `close` to be noticed."""
BATCH = 500
"""Records taken from the driver at once."""
TURN = 100
"""Records a lane appends in one turn of the loop."""
RETRY_S = 0.05
"""Wait before an append that the log's producer refused is tried again."""
DRAIN_S = 2.0
"""How long partitions that are given up wait for their last delivery reports."""
MISSING_S = 1.0
"""How often the topics of the group are looked for, in seconds."""
COMPLAIN_S = 60.0
"""The same trouble of a mapping is logged at most this often."""
CLOSE_S = 15.0
"""Longest wait for the thread to end."""

Done = Callable[[int | None], None]
"""Told the log offset, or None when the fate of the append is unknown."""


class Appender(Protocol):
    """What `LogAppends` needs of `LogProducer`. `refused` goes up within an `append` that is answered by `Overfull`."""

    refused: int

    def append(self, ticket: int, partition: int, key: bytes, value: bytes, kind: int, id: str) -> None: ...


class LogAppends:
    """Appends that are not the node's. Their tickets are negative; `sort` takes their answers out before the node sees them."""

    __slots__ = ("_open", "_partitions", "_producer", "_tickets")

    def __init__(self, partitions: int) -> None:
        """`partitions`: of the log."""
        self._partitions = partitions
        self._producer: Appender | None = None
        self._tickets = itertools.count(-1, -1)
        self._open: dict[int, Done] = {}

    def sort(self, deliver: Deliver) -> Deliver:
        """`deliver` for `LogProducer`: passes on what is the node's."""

        def sorted_deliver(events: list[Event]) -> None:
            rest: list[Event] = []
            for event in events:
                if not isinstance(event, Reported | Overfull) or event.ticket >= 0:
                    rest.append(event)
                elif isinstance(event, Reported) and (done := self._open.pop(event.ticket, None)) is not None:
                    done(event.offset)
            if rest:
                deliver(rest)

        return sorted_deliver

    def use(self, producer: Appender) -> None:
        self._producer = producer

    def append(self, key: bytes, body: bytes, publish_id: str, done: Done) -> bool:
        """Hand one publish to Kafka; on the loop. False: it was not taken, `done` will not be called, and later ones must wait for it."""
        producer = self._producer
        if producer is None:
            return False
        ticket, refused = next(self._tickets), producer.refused
        producer.append(ticket, partition_of(key, self._partitions), key, body, Kind.MESSAGE, publish_id)
        if producer.refused != refused:
            return False
        self._open[ticket] = done
        return True


# --- on the loop ---------------------------------------------------------------------------------------------------------------------


class _State(enum.Enum):
    WAITING = 0
    APPENDED = 1
    DURABLE = 2
    UNKNOWN = 3


class _Entry:
    """One record read. `append` is None for a record that is skipped: it only moves the mark."""

    __slots__ = ("append", "offset", "size", "state")

    def __init__(self, offset: int, append: tuple[bytes, bytes, str] | None, size: int) -> None:
        self.offset = offset
        self.append = append
        self.size = size
        self.state = _State.WAITING


class _Lane:
    """The records of one partition while it is assigned, in offset order; all methods on the loop.

    When the fate of an append is unknown nothing further is appended until all appends of the lane are answered. Then those of unknown
    fate go again, first and in order, under their ids: readers of the log leave out what was there already.
    """

    __slots__ = (
        "_appended", "_appends", "_closed", "_loop", "_open", "_rewind", "_timer", "_waiting",
        "finished_bytes", "finished_records", "mark", "taken_bytes", "taken_records",
    )  # fmt: skip

    def __init__(self, loop: asyncio.AbstractEventLoop, appends: LogAppends, mark: int) -> None:
        self._loop = loop
        self._appends = appends
        self._appended: deque[_Entry] = deque()
        self._waiting: deque[_Entry] = deque()
        self._open = 0
        self._rewind = False
        self._closed = False
        self._timer: asyncio.TimerHandle | asyncio.Handle | None = None
        self.mark = mark
        """Everything before this offset is durable in the log, or skipped. Read by the thread."""
        self.taken_records = self.taken_bytes = 0
        """Handed over, ever. Written by the thread only, so that what the loop has not seen yet counts against the bounds too."""
        self.finished_records = self.finished_bytes = 0
        """Behind the mark, ever. Written by the loop only."""

    def add(self, entries: list[_Entry]) -> None:
        if self._closed:
            return
        self._waiting.extend(entries)
        if self._timer is None:
            self._append()

    def close(self) -> None:
        """The partition is another member's now: append nothing more."""
        self._closed = True
        self._waiting.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    @property
    def settled(self) -> bool:
        """The lane is closed and no append is un-answered."""
        return self._closed and self._open == 0

    def _append(self) -> None:
        self._timer = None
        for _ in range(TURN):
            if self._closed or self._rewind or not self._waiting:
                return
            entry = self._waiting[0]
            if entry.append is None:
                entry.state = _State.DURABLE
            else:
                key, body, publish_id = entry.append
                if not self._appends.append(key, body, publish_id, functools.partial(self._answered, entry)):
                    self._timer = self._loop.call_later(RETRY_S, self._append)
                    return
                entry.state = _State.APPENDED
                self._open += 1
            self._appended.append(self._waiting.popleft())
            self._advance()
        if self._waiting:
            self._timer = self._loop.call_soon(self._append)

    def _answered(self, entry: _Entry, offset: int | None) -> None:
        self._open -= 1
        if offset is None:
            entry.state = _State.UNKNOWN
            self._rewind = True
        else:
            entry.state = _State.DURABLE
            self._advance()
        if self._rewind and not self._open:
            self._rewind = False
            while self._appended:
                self._waiting.appendleft(self._appended.pop())
            self._again()

    def _again(self) -> None:
        """Entries that are durable already stay in the run for the mark's sake."""
        for entry in self._waiting:
            if entry.state is _State.DURABLE:
                entry.append = None
            entry.state = _State.WAITING
        if self._timer is None and not self._closed:
            self._timer = self._loop.call_later(RETRY_S, self._append)

    def _advance(self) -> None:
        while self._appended and self._appended[0].state is _State.DURABLE:
            entry = self._appended.popleft()
            self.mark = entry.offset + 1
            self.finished_records += 1
            self.finished_bytes += entry.size


# --- the thread ----------------------------------------------------------------------------------------------------------------------


class MappingRunner(KafkaThread):
    """One mapping on one core. Cores that run the same mapping share its partitions."""

    def __init__(
        self,
        config: KafkaConfig,
        mapping: Mapping,
        appends: LogAppends,
        *,
        limits: CoreLimits,
        loop: asyncio.AbstractEventLoop,
        create_topics: bool = False,
    ) -> None:
        """`create_topics`: make topics that are missing (dev only)."""
        super().__init__(f"tidegate-mapping-{mapping.id}")
        self._config = config
        self._mapping = mapping
        self._appends = appends
        self._limits = limits
        self._loop = loop
        self._create_topics = create_topics
        self._ready = threading.Event()
        self._complained: dict[str, float] = {}
        self._born: set[str] | None = None
        self._consumer: Any = None
        self._lanes: dict[tuple[str, int], _Lane] = {}
        self._committed: dict[tuple[str, int], int] = {}
        self.group = f"{config.prefix}.mapping.{mapping.app}.{mapping.id}"
        self.read = 0
        """Records read. Readable from any thread, like all counters here."""
        self.skipped: Counter[str] = Counter()
        """Records that became no message, by reason."""
        self.lost = 0
        """Records that retention had deleted before the mapping saw them."""

    @property
    def ready(self) -> bool:
        """The group has taken this core in, and its starting offsets are committed: what is produced from now on will be read."""
        return self._ready.is_set()

    async def close(self, timeout_s: float = CLOSE_S) -> None:
        """Waits shortly for un-reported appends, commits, leaves the group. Close it before `LogProducer`."""
        await super().close(timeout_s)

    def run(self) -> None:
        """Until `close`, or an error that needs a new consumer. Raises KafkaException."""
        self._consumer = open_consumer(
            self._config,
            f"mapping-{self._mapping.id}",
            self.group,
            auto_offset_reset="earliest",  # `_assigned` asks for every position; this is for what retention deletes under way
            isolation_level="read_committed",
            allow_auto_create_topics=False,
            topic_metadata_refresh_interval_ms=5_000,
            fetch_wait_max_ms=10,
        )
        try:
            self._read_until_closed()
        finally:
            self._drop(list(self._lanes))
            self._consumer.close()

    def _read_until_closed(self) -> None:
        topics = sorted(set(self._mapping.config.topics))
        missing = self._missing(topics)
        if self._born is None:
            self._born = missing
        self._subscribe(topics)
        look_at = time.monotonic() + MISSING_S
        commit_at = time.monotonic() + COMMIT_S
        paused = False
        while not self.closing.is_set():
            paused = self._hold(paused)
            self._read()
            now = time.monotonic()
            if now >= commit_at:
                commit_at = now + COMMIT_S
                self._commit(wait=False)
            if missing and now >= look_at:
                look_at = now + MISSING_S
                still = self._missing(topics)
                if still != missing:
                    self._subscribe(topics)  # makes librdkafka look at once
                missing = still
        self._settle(list(self._lanes))

    def _subscribe(self, topics: list[str]) -> None:
        self._consumer.subscribe(topics, on_assign=self._assigned, on_revoke=self._revoked, on_lost=self._gone)

    def _missing(self, topics: list[str]) -> set[str]:
        """Which topics are not there (or not ours to read)."""
        faults = TargetTopics(self._config, self._consumer, create=self._create_topics, timeout_s=CALL_S).faults(set(topics))
        for topic, fault in faults.items():
            self._complain(f"{fault.replace('_', ' ')}: waiting for {topic}")
        return set(faults)

    # --- reading ---------------------------------------------------------------------------------------------------------------------

    def _hold(self, paused: bool) -> bool:
        """Stop reading while too much is not yet durable, go on below half of it. The group is polled all the while."""
        lanes = self._lanes.values()
        records = sum(lane.taken_records - lane.finished_records for lane in lanes)
        size = sum(lane.taken_bytes - lane.finished_bytes for lane in lanes)
        full = records >= self._limits.mapping_records or size >= self._limits.mapping_bytes
        partitions = [TopicPartition(topic, number) for topic, number in self._lanes]
        if full:
            self._consumer.pause(partitions)
            return True
        if paused and records <= self._limits.mapping_records // 2 and size <= self._limits.mapping_bytes // 2:
            self._consumer.resume(partitions)
            return False
        return paused

    def _read(self) -> None:
        batch: dict[tuple[str, int], list[_Entry]] = {}
        now_ms = time.time_ns() // 1_000_000
        for message in read_batch(self._consumer, BATCH, POLL_S):
            error = message.error()
            if error is None:
                self._take(message, now_ms, batch)
            elif error.fatal():
                raise KafkaException(error)
            elif error.code() != KafkaError._PARTITION_EOF:
                self._complain(f"reading: {error.name()}")
        for at, entries in batch.items():
            # A rebalance within `consume` may have taken the partition away, and its records with it.
            lane = self._lanes.get(at)
            if lane is not None:
                lane.taken_records += len(entries)
                lane.taken_bytes += sum(entry.size for entry in entries)
                self._call(lane.add, entries)

    def _take(self, message: Any, now_ms: int, batch: dict[tuple[str, int], list[_Entry]]) -> None:
        at = (message.topic(), message.partition())
        key, value = message.key(), message.value()
        record = SourceRecord(*at, message.offset(), key, value, message.headers() or [])
        made = self._mapping.map(record, now_ms)
        self.read += 1
        append = None
        if isinstance(made, Skipped):
            self.skipped[made.reason] += 1
            self._complain(f"records are skipped: {made.reason.replace('_', ' ')}", f" ({made.detail})")
        else:
            append = (made.key, made.body, made.publish_id)
        batch.setdefault(at, []).append(_Entry(record.offset, append, len(value or b"") + len(key or b"")))

    def _call(self, function: Callable[..., None], *arguments: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop was closed first: nothing is appended or committed any more
            self._loop.call_soon_threadsafe(function, *arguments)

    # --- positions -------------------------------------------------------------------------------------------------------------------

    def _assigned(self, _consumer: object, partitions: list[TopicPartition]) -> None:
        starts: list[TopicPartition] = []
        new: list[TopicPartition] = []
        for at in self._consumer.committed(partitions, timeout=CALL_S) if partitions else []:
            if at.error is not None:
                raise KafkaException(at.error)
            low, high = self._consumer.get_watermark_offsets(TopicPartition(at.topic, at.partition), timeout=CALL_S)
            if at.offset < 0:
                # A topic that came into being after the mapping holds nothing older than the mapping.
                everything = self._mapping.config.start == "earliest" or at.topic in (self._born or ())
                start = TopicPartition(at.topic, at.partition, low if everything else high)
                new.append(start)
            else:
                start = TopicPartition(at.topic, at.partition, max(at.offset, low))
                if at.offset < low:
                    self.lost += low - at.offset
                    self._complain("retention deleted records before the mapping read them", f" ({low - at.offset} of {at.topic})")
            starts.append(start)
            self._lanes[at.topic, at.partition] = _Lane(self._loop, self._appends, start.offset)
            self._committed[at.topic, at.partition] = start.offset
        self._consumer.incremental_assign(starts)
        if starts:
            self._consumer.resume(starts)  # a pause outlives an assignment (measured with librdkafka 2.16)
        if new:
            self._consumer.commit(offsets=new, asynchronous=False)
        self._ready.set()

    def _revoked(self, _consumer: object, partitions: list[TopicPartition]) -> None:
        lanes = [(at.topic, at.partition) for at in partitions]
        try:
            self._settle(lanes)
        except KafkaException as failed:  # the next owner appends some records again, under the same ids
            self._complain(f"commit before a rebalance: {failed.args[0].name()}")
        self._drop(lanes)
        self._consumer.incremental_unassign(partitions)

    def _gone(self, _consumer: object, partitions: list[TopicPartition]) -> None:
        """Another member has the partitions already: nothing to commit."""
        self._drop([(at.topic, at.partition) for at in partitions])
        self._consumer.incremental_unassign(partitions)

    def _settle(self, lanes: list[tuple[str, int]]) -> None:
        """Wait shortly for un-reported appends of these partitions, appending nothing new, and commit."""
        mine = [self._lanes[at] for at in lanes if at in self._lanes]
        for lane in mine:
            self._call(lane.close)
        until = time.monotonic() + DRAIN_S
        while not all(lane.settled for lane in mine) and time.monotonic() < until:
            time.sleep(0.01)
        self._commit(wait=True)

    def _drop(self, lanes: list[tuple[str, int]]) -> None:
        for at in lanes:
            lane = self._lanes.pop(at, None)
            self._committed.pop(at, None)
            if lane is not None:
                self._call(lane.close)

    def _commit(self, *, wait: bool) -> None:
        marks = {at: lane.mark for at, lane in self._lanes.items()}
        offsets = [TopicPartition(*at, mark) for at, mark in marks.items() if mark != self._committed.get(at)]
        if offsets:
            self._consumer.commit(offsets=offsets, asynchronous=not wait)
            self._committed |= marks

    def _complain(self, what: str, detail: str = "") -> None:
        """Log, at most once a minute for the same trouble."""
        now = time.monotonic()
        if self._complained.get(what, 0.0) <= now:
            if len(self._complained) > 1_000:
                self._complained.clear()
            self._complained[what] = now + COMPLAIN_S
            log.warning("mapping %s: %s%s", self._mapping.id, what, detail)

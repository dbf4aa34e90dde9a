"""Runs the mappings: reads your topics as a consumer group each, appends to the log, commits what has become durable there.

Two halves. A thread per mapping owns the consumer: it reads, maps, and commits. The loop owns the lanes (`core.kafka.lanes`), one per
partition read, which append. `LogAppends` is the mappings' share of the core's `LogProducer`.

A record that cannot be mapped yet (its schema is being fetched, or the policy is `stop`) holds up its partition: what was read behind it is
kept, at most one batch, the partition is paused, and the record is tried again.

A mapping may be changed, held and moved while it runs (`use`): the thread takes it up between two reads. What was handed to the lanes
before is appended as the mapping said then.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from typing import Any, NamedTuple

from confluent_kafka import KafkaError, KafkaException, TopicPartition

from core.kafka.appended import Committed, LogScan, Look, Place, read_metadata, write_metadata
from core.kafka.config import KafkaConfig
from core.kafka.consumer import KafkaThread, open_consumer, read_batch
from core.kafka.dead_letters import DeadLetters
from core.kafka.lanes import Entry, Lane, LogAppends, Position, State
from core.kafka.logs import log
from core.kafka.records import headers_of
from core.kafka.targets import TargetTopics
from core.mappings import Delayed, Failed, Mapped, Mapping, Schemas, Seek, SourceRecord, Steering
from relay.model.limits import CoreLimits

ROOM_S = 0.002
"""How often, while too much is not yet durable, it is looked whether that has changed, in seconds."""
FULL_S = 1.0
"""How long the group is not polled for that before the partitions are paused, which throws away what the driver has read ahead."""
CALL_S = 10.0
"""Longest wait for one answer of Kafka."""
LOOK_S = 2.0
"""The same for looks at topics, which are repeated anyway."""
COMMIT_S = 0.5
"""Time between commits. What is not committed is looked for in the log by whoever takes the partition on."""
REFRESH_S = 60.0
"""Time after which a commit is repeated although its offset is the same, so that a look at the log begins near its end."""
POLL_S = 0.1
"""Longest wait for a record, and so for `close` to be noticed."""
BATCH = 500
"""Records taken from the driver at once."""
SCAN_S = 0.05
"""How long the log is looked at in one go."""
LEASE_S = 5.0
"""A thread that did not come round for so long was frozen: it asks Kafka whether it is still in the group before anything is appended.
Shorter than the group's session time-out (6 s), after which others have the partitions."""
DRAIN_S = 2.0
"""How long partitions that are given up wait for their last delivery reports."""
MISSING_S = 1.0
"""How often the topics of the group are looked for while some are missing, in seconds."""
PATTERN_S = 5.0
"""How often topics that match the pattern are looked for, in seconds."""
COUNT_S = 30.0
"""How often topics are looked at otherwise, in seconds."""
STOPPED_S = 5.0
"""How often a record that stops its partition is tried again, in seconds."""
LAG_S = 2.0
"""How often the ends of the partitions are looked at, in seconds."""
SEEK_S = 0.5
"""Wait before a seek that Kafka refused is tried again, in seconds."""
COMPLAIN_S = 60.0
"""The same trouble of a mapping is logged at most this often."""
CLOSE_S = 15.0
"""Longest wait for the thread to end."""


_NOT_YET = (
    KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError._UNKNOWN_TOPIC,
    KafkaError._UNKNOWN_PARTITION,
)
"""What is said of a partition that will be there in a moment."""
_REBALANCING = (KafkaError.ILLEGAL_GENERATION, KafkaError.REBALANCE_IN_PROGRESS, KafkaError.UNKNOWN_MEMBER_ID)
"""What is said of a commit while the group is changing again."""


class Stopped(NamedTuple):
    """A partition that waits at a record. `delayed`: for Schema Registry; otherwise its policy is `stop`."""

    topic: str
    partition: int
    offset: int
    reason: str
    detail: str
    delayed: bool


class _Partition:
    """A partition while it is assigned; the thread's."""

    __slots__ = (
        "already", "already_until", "committed", "committed_at", "count", "end", "held", "lane", "left", "retry_at", "scan", "seek",
        "stopped",
    )  # fmt: skip

    def __init__(self, lane: Lane, count: int, seek: int) -> None:
        self.lane = lane
        self.count = count
        """Partitions that its topic has."""
        self.seek = seek
        """The number of the last seek that it has carried out."""
        self.held: deque[SourceRecord] = deque()
        """Not mapped yet; the first of them is what the partition waits at."""
        self.stopped: Stopped | None = None
        self.retry_at = 0.0
        self.scan: LogScan | None = None
        """Under way; nothing is mapped meanwhile."""
        self.already: set[int] = set()
        """Offsets of what a former owner has appended."""
        self.already_until = 0
        """Nothing is committed between its commit and here: the next owner would look at the log from later on, and not find it."""
        self.committed: Position | None = None
        self.committed_at = 0.0
        self.end = -1
        self.left = False
        """Its topic is not the mapping's any more: it goes with the next rebalance, and until then nothing is read."""

    @property
    def waits(self) -> bool:
        return self.scan is not None or self.left or bool(self.held)


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
        schemas: Schemas | None = None,
        steering: Steering | None = None,
        create_topics: bool = False,
    ) -> None:
        """`create_topics`: make topics that are missing (dev only)."""
        super().__init__(f"tidegate-mapping-{mapping.id}")
        self._config = config
        self._mapping = mapping
        self._steering = steering or Steering()
        self._given: tuple[Mapping, Steering, Schemas | None] | None = None
        """What `use` was told and the thread has not taken up yet."""
        self._before: Mapping | None = None
        """The mapping as it was before a change, until topics have been looked for."""
        self._anew = False
        """The change takes another consumer."""
        self._look_at = self._seek_at = 0.0
        self._appends = appends
        self._limits = limits
        self._loop = loop
        self._schemas = schemas
        self._create_topics = create_topics
        self._ready = threading.Event()
        self._complained: dict[str, float] = {}
        self._trouble: tuple[int, str] | None = None
        """The last complaint, and when (milliseconds since 1970)."""
        self._seen: set[str] | None = None
        self._born: set[str] = set()
        """Topics that were not there when the mapping was first started: they hold nothing older than it."""
        self._subscribed: tuple[list[str], list[str]] = ([], [])
        """Topics, and those of them that are missing."""
        self._counts: dict[str, int] = {}
        """Partitions of the topics."""
        self._consumer: Any = None
        self._dead: DeadLetters | None = None
        self._parts: dict[Place, _Partition] = {}
        self._scans: deque[LogScan] = deque()
        self._paused: set[Place] = set()
        self._full_since: float | None = None
        """Since when too much is not yet durable."""
        self._begun: dict[Place, tuple[_Partition, Position]] = {}
        """Where partitions begin, until Kafka has been told: it may not listen, while the group changes again."""
        self._lease_until = 0.0
        self.group = f"{config.prefix}.mapping.{mapping.app}.{mapping.id}"
        self.read = 0
        """Records read. Readable from any thread, like all counters here."""
        self.skipped: Counter[str] = Counter()
        """Records that became no message and were left out, by reason."""
        self.dead: Counter[str] = Counter()
        """Records handed to the dead letter topic, by reason."""
        self.found = 0
        """Records that a former owner had appended and not committed: not appended again."""
        self.lost = 0
        """Records that retention had deleted before the mapping saw them."""

    @property
    def ready(self) -> bool:
        """The group has taken this core in, and its starting offsets are committed: what is produced from now on will be read."""
        return self._ready.is_set()

    @property
    def lag(self) -> int:
        """Records of the partitions assigned to this core that are neither durable in the log nor otherwise done with. Any thread."""
        return sum(max(0, part.end - part.lane.mark) for part in list(self._parts.values()))

    @property
    def stopped(self) -> list[Stopped]:
        """Partitions that wait at a record. Any thread."""
        return [stopped for part in list(self._parts.values()) if (stopped := part.stopped) is not None]

    @property
    def paused(self) -> bool:
        return self._steering.paused

    @property
    def seeks_due(self) -> int:
        """Partitions that have not carried out the last seek which moves them. Any thread."""
        steering = self._steering
        seeks = ((part.seek, steering.seek_of(*place)) for place, part in list(self._parts.items()))
        return sum(1 for done, seek in seeks if seek is not None and seek.number > done)

    def status(self) -> dict[str, Any]:
        """For operators. Any thread."""
        return {
            "app": self._mapping.app,
            "id": self._mapping.id,
            "group": self.group,
            "ready": self.ready,
            "paused": self.paused,
            "partitions": len(self._parts),
            "lag": self.lag,
            "seeksDue": self.seeks_due,
            "stopped": [stopped._asdict() for stopped in self.stopped],
            "read": self.read,
            "skipped": dict(self.skipped),
            "dead": dict(self.dead),
            "lost": self.lost,
            "trouble": None if (trouble := self._trouble) is None else {"at": trouble[0], "what": trouble[1]},
        }

    def use(self, mapping: Mapping, steering: Steering, schemas: Schemas | None = None) -> None:
        """Go on with this; the app and the id are the same. Any thread; returns at once."""
        self._given = (mapping, steering, schemas)

    async def close(self, timeout_s: float = CLOSE_S) -> None:
        """Waits shortly for un-reported appends, commits, leaves the group. Close it before `LogProducer`."""
        await super().close(timeout_s)

    def run(self) -> None:
        """Until `close`, or an error that needs a new consumer. Raises KafkaException."""
        while not self.closing.is_set():
            self._anew = False
            self._run_once()

    def _run_once(self) -> None:
        self._subscribed = ([], [])
        self._begun = {}
        self._take_up()
        self._consumer = open_consumer(
            self._config,
            f"mapping-{self._mapping.id}",
            self.group,
            auto_offset_reset="earliest",  # `_assigned` asks for every position; this is for what retention deletes under way
            isolation_level="read_committed",
            allow_auto_create_topics=False,
            topic_metadata_refresh_interval_ms=5_000,
            fetch_min_bytes=4_096,
            fetch_wait_max_ms=10,
        )
        try:
            self._open_dead_letters()
            self._learn_ends()
            self._read_until_closed()
        finally:
            self._drop(list(self._parts))
            self._close_dead_letters()
            self._consumer.close()
            self._consumer = None

    def _read_until_closed(self) -> None:
        commit_at = lag_at = self._look_at = 0.0
        while not self.closing.is_set() and not self._anew:
            self._take_up()
            now = time.monotonic()
            if now >= self._look_at:
                self._look_at = now + self._look_again()
            if now >= self._seek_at:
                self._carry_out_seeks()
            self._hold()
            self._read()
            self._renew_lease()
            self._try_again()
            self._look_at_log()
            if self._dead is not None:
                self._dead.poll()
            now = time.monotonic()
            if now >= commit_at:
                commit_at = now + COMMIT_S
                if self._begun:
                    self._begin()
                else:
                    self._commit(wait=False)
                self._snapshot()
            if now >= lag_at:
                lag_at = now + LAG_S
                self._look_at_ends()
        self._settle(list(self._parts))

    # --- changes ---------------------------------------------------------------------------------------------------------------------

    def _take_up(self) -> None:
        """What `use` was told last."""
        given, self._given = self._given, None
        if given is None:
            return
        mapping, self._steering, self._schemas = given
        self._seek_at = 0.0
        if mapping is self._mapping:
            return
        old, self._mapping = self._mapping, mapping
        log.info("mapping %s: changed", mapping.id)
        self._complained.clear()
        for (topic, _), part in self._parts.items():
            part.retry_at = 0.0
            part.left = not mapping.reads(topic)
        if (old.config.topics, old.config.topic_pattern) != (mapping.config.topics, mapping.config.topic_pattern):
            self._before = self._before or old
            self._look_at = 0.0
        if old.config.dlq_topic != mapping.config.dlq_topic:
            # Records whose letters are not written yet are tried anew by the new rules: read again, from the last commit.
            self._anew = self._dead is not None and self._dead.pending > 0
            if self._consumer is not None and not self._anew:
                self._close_dead_letters()
                self._open_dead_letters()

    def _open_dead_letters(self) -> None:
        if topic := self._mapping.config.dlq_topic:
            self._dead = DeadLetters(self._config, topic, self._mapping.id, self._targets(), self._complain)

    def _close_dead_letters(self) -> None:
        if self._dead is not None:
            self._dead.close()
            self._dead = None

    def _carry_out_seeks(self) -> None:
        """Move the partitions whose last seek is not done."""
        self._seek_at = float("inf")
        for place, part in list(self._parts.items()):
            seek = self._steering.seek_of(*place)
            if seek is None or seek.number <= part.seek:
                continue
            try:
                self._move(place, part, seek)
            except KafkaException as refused:
                # Perhaps it is another core's by now, which will do it
                self._seek_at = time.monotonic() + SEEK_S
                self._complain(f"seek: {refused.args[0].name()}")

    def _move(self, place: Place, part: _Partition, seek: Seek) -> None:
        """Commit the new position first: from then on the seek is done, whoever goes on. Raises KafkaException."""
        low, high = self._ends_of(place)
        start = self._target(place, seek, low, high)
        moved = _Partition(self._lane(start), part.count, seek.number)
        moved.end = high
        for error in self._commit_positions({place: (moved, self._here(start))}, wait=True):
            raise KafkaException(error)
        self._call(part.lane.close)
        self._parts[place] = moved
        try:
            self._consumer.incremental_unassign([TopicPartition(*place)])
            self._consumer.incremental_assign([TopicPartition(*place, start)])
            self._consumer.resume([TopicPartition(*place)])  # as after any assignment
        except KafkaException:
            # The seek is done by the commit: nothing may be taken from where the consumer still is. Another one begins at the commit.
            self._drop([place])
            self._anew = True
            raise
        self._paused.discard(place)
        log.info("mapping %s: seek %d: %s:%d goes on at %d", self._mapping.id, seek.number, *place, start)

    def _target(self, place: Place, seek: Seek, low: int, high: int) -> int:
        """Where a seek leads: never beyond what there is. Raises KafkaException."""
        match seek.to:
            case "earliest":
                return low
            case "latest":
                return high
            case int():
                return self._offset_at(place, seek.to, high)
        return min(max(low, seek.offset or 0), high)

    # --- topics ----------------------------------------------------------------------------------------------------------------------

    def _look_again(self) -> float:
        """When to look next, in seconds."""
        try:
            return self._look_for_topics()
        except KafkaException as failed:
            self._complain(f"looking for topics: {failed.args[0].name()}")
            return PATTERN_S if self._subscribed[0] else MISSING_S

    def _look_for_topics(self) -> float:
        """Subscribe to what is there, and to what is not there yet. When to look again, in seconds from now."""
        named = set(self._mapping.config.topics)
        faults = self._targets().faults(named) if named else {}
        for topic, fault in faults.items():
            self._complain(f"{fault.replace('_', ' ')}: waiting for {topic}")
        self._counts = self._describe(named)
        there = set(self._counts) - named
        present = there | (named - faults.keys())
        if self._seen is None:
            self._seen = present
        # What is missing is born from now on: its partitions may be assigned before the next look. What is there and was not asked for
        # before a change of the mapping is not.
        fresh = {topic for topic in present - self._seen if self._before is None or self._before.reads(topic)}
        self._born |= fresh | {topic for topic, fault in faults.items() if fault == "missing_topic"}
        self._seen |= present
        self._before = None
        wanted, missing = sorted(named | there), sorted(faults)
        if wanted and (wanted, missing) != self._subscribed:
            # Also when a missing one has appeared: it makes librdkafka look at once
            self._consumer.subscribe(wanted, on_assign=self._assigned, on_revoke=self._revoked, on_lost=self._gone)
        elif not wanted:
            if self._subscribed[0]:
                self._consumer.unsubscribe()
            self._ready.set()
        self._subscribed = (wanted, missing)
        if faults:
            return MISSING_S
        return PATTERN_S if self._mapping.config.topic_pattern else COUNT_S

    def _describe(self, named: set[str]) -> dict[str, int]:
        """Topics that are there and mapped, with their numbers of partitions. Raises KafkaException."""
        if self._mapping.config.topic_pattern:
            topics = self._consumer.list_topics(timeout=LOOK_S).topics
            found = sorted(topic for topic in topics if topic not in named and self._mapping.reads(topic))
            if len(found) > self._limits.mapping_topics:
                self._complain(f"the pattern finds more than {self._limits.mapping_topics} topics (mapping_topics): some are not read")
            wanted = [*named, *found[: self._limits.mapping_topics]]
        else:
            topics = {}
            wanted = list(named)
            for topic in named:
                topics |= self._consumer.list_topics(topic, timeout=LOOK_S).topics
        return {topic: len(topics[topic].partitions) for topic in wanted if topic in topics and topics[topic].error is None}

    def _targets(self) -> TargetTopics:
        return TargetTopics(self._config, self._consumer, create=self._create_topics, timeout_s=LOOK_S)

    # --- reading ---------------------------------------------------------------------------------------------------------------------

    def _hold(self) -> None:
        """Pause what waits, and everything while too much is not yet durable for long, until half of it is. The group is polled all the
        while."""
        parts = self._parts
        lanes = [part.lane for part in parts.values()]
        held = [record for part in parts.values() for record in part.held]
        records = sum(lane.taken_records - lane.finished_records for lane in lanes) + len(held)
        size = sum(lane.taken_bytes - lane.finished_bytes for lane in lanes) + sum(map(_size, held))
        limits = self._limits
        if records >= limits.mapping_records or size >= limits.mapping_bytes:
            self._full_since = self._full_since or time.monotonic()
        elif records <= limits.mapping_records // 2 and size <= limits.mapping_bytes // 2:
            self._full_since = None
        long = self._full_since is not None and time.monotonic() - self._full_since >= FULL_S
        wanted = {place for place, part in parts.items() if long or self._steering.paused or part.waits}
        if stop := wanted - self._paused:
            self._consumer.pause([TopicPartition(*place) for place in stop])
        if go := (self._paused - wanted) & parts.keys():
            self._consumer.resume([TopicPartition(*place) for place in go])
        self._paused = wanted

    def _read(self) -> None:
        if self._full_since is not None and len(self._paused) < len(self._parts):
            time.sleep(ROOM_S)
            return
        batch: dict[Place, list[SourceRecord]] = {}
        for message in read_batch(self._consumer, BATCH, POLL_S):
            error = message.error()
            if error is None:
                place = (message.topic(), message.partition())
                record = SourceRecord(*place, message.offset(), message.key(), message.value(), headers_of(message))
                batch.setdefault(place, []).append(record)
            elif error.fatal():
                raise KafkaException(error)
            elif error.code() != KafkaError._PARTITION_EOF:
                self._complain(f"reading: {error.name()}")
        if self.closing.is_set():  # meanwhile: whoever goes on reads them
            return
        for place, records in batch.items():
            # A rebalance within `consume` may have taken the partition away, and its records with it.
            part = self._parts.get(place)
            if part is not None:
                self.read += len(records)
                part.held.extend(records)
                self._map_held(part)

    def _try_again(self) -> None:
        now = time.monotonic()
        for part in self._parts.values():
            if part.held and part.scan is None and now >= part.retry_at:
                self._map_held(part)

    def _map_held(self, part: _Partition) -> None:
        """Map what was read, in order, as far as that goes."""
        if part.scan is not None or part.left or self._steering.paused:
            return
        entries: list[Entry] = []
        now_ms = time.time_ns() // 1_000_000
        while part.held:
            record = part.held[0]
            entry = self._entry(part, record, self._mapping.map(record, now_ms, self._schemas, part.seek))
            if entry is None:
                break
            part.held.popleft()
            entries.append(entry)
        else:
            part.stopped = None
        if entries:
            lane = part.lane
            lane.taken_records += len(entries)
            lane.taken_bytes += sum(entry.size for entry in entries)
            self._call(lane.add, entries)

    def _entry(self, part: _Partition, record: SourceRecord, made: Mapped | Failed | Delayed) -> Entry | None:
        """None: the partition waits."""
        size = _size(record)
        match made:
            case Mapped(key, publish_id, body):
                if record.offset in part.already:
                    self.found += 1
                    return Entry(record.offset, None, size)
                return Entry(record.offset, (key, body, publish_id), size)
            case Delayed(schema):
                self._stop(part, record, "waiting_for_schema", f"schema {schema}", delayed=True)
                return None
            case Failed():
                return self._failed(part, record, made, size)

    def _failed(self, part: _Partition, record: SourceRecord, failed: Failed, size: int) -> Entry | None:
        reason, detail = failed
        what = reason.replace("_", " ")
        where = f" ({detail}; first at {record.topic}:{record.partition}:{record.offset})"
        match self._mapping.config.on_failed_record_mapping:
            case "skip":
                self.skipped[reason] += 1
                self._complain(f"records are skipped: {what}", where)
                return Entry(record.offset, None, size)
            case "dlq":
                assert self._dead is not None
                self.dead[reason] += 1
                self._complain(f"records go to the dead letter topic: {what}", where)
                entry = Entry(record.offset, None, size, State.DEAD)
                self._dead.bury(record, failed, lambda: self._call(part.lane.buried, entry))
                return entry
            case _:
                self._complain(f"stopped at a record: {what}", where)
                self._stop(part, record, reason, detail, delayed=False)
                self._keep_first(part)
                return None

    def _stop(self, part: _Partition, record: SourceRecord, reason: str, detail: str, *, delayed: bool) -> None:
        part.stopped = Stopped(record.topic, record.partition, record.offset, reason, detail, delayed)
        part.retry_at = 0.0 if delayed else time.monotonic() + STOPPED_S

    def _keep_first(self, part: _Partition) -> None:
        """Let go of what was read behind the record at which the partition stops, which may take long: it is read again then."""
        if len(part.held) < 2:
            return
        first, second = part.held[0], part.held[1]
        part.held = deque([first])
        place = (first.topic, first.partition)
        self._consumer.incremental_unassign([TopicPartition(*place)])
        self._consumer.incremental_assign([TopicPartition(*place, second.offset)])
        self._paused.discard(place)

    def _call(self, function: Callable[..., None], *arguments: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop was closed first: nothing is appended or committed any more
            self._loop.call_soon_threadsafe(function, *arguments)

    # --- what is in the log already --------------------------------------------------------------------------------------------------

    def _learn_ends(self) -> None:
        """Where the log ends, as far as nobody has said. Raises KafkaException."""
        topic = self._appends.log.topic
        for partition, known in enumerate(self._appends.ends):
            if known < 0:
                _, end = self._consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=CALL_S)
                self._appends.ended(partition, end)

    def _look_at_log(self) -> None:
        if not self._scans:
            return
        scan = self._scans[0]
        if not scan.step(SCAN_S):
            return
        self._scans.popleft()
        for place in scan.places:
            if (part := self._parts.get(place)) is not None and part.scan is scan:
                part.already = scan.offsets(place)
                part.already_until = max(part.already, default=-1) + 1
                part.scan = None
        if found := sum(len(scan.offsets(place)) for place in scan.places):
            log.info("mapping %s: %d records were in the log already", self._mapping.id, found)
        scan.close()

    # --- positions -------------------------------------------------------------------------------------------------------------------

    def _assigned(self, _consumer: object, partitions: list[TopicPartition]) -> None:
        starts: list[TopicPartition] = []
        looks: dict[Place, tuple[_Partition, list[int]]] = {}
        for at in self._consumer.committed(partitions, timeout=CALL_S) if partitions else []:
            if at.error is not None:
                raise KafkaException(at.error)
            place = (at.topic, at.partition)
            low, high = self._ends_of(place)
            count = max(self._counts.get(at.topic, 0), at.partition + 1)
            said = read_metadata(at.metadata, self._appends.log) if at.offset >= 0 else None
            start, seek = self._start(place, at.offset, said, low, high, count)
            part = self._parts[place] = _Partition(self._lane(start), count, seek)
            part.end = high
            starts.append(TopicPartition(*place, start))
            if said is not None and said.floors is not None and said.seek == seek:
                part.committed = Position(start, said.floors)
                looks[place] = (part, said.floors)
            else:
                self._begun[place] = (part, self._here(start))
        self._consumer.incremental_assign(starts)
        if starts:
            self._consumer.resume(starts)  # a pause outlives an assignment (measured with librdkafka 2.16)
            self._paused -= {(at.topic, at.partition) for at in starts}
        self._look(looks)
        self._hold()
        self._begin()
        if not self._begun:  # or Kafka has just said that it is not sure of this member
            self._lease_until = time.monotonic() + LEASE_S

    def _start(self, place: Place, committed: int, said: Committed | None, low: int, high: int, count: int) -> tuple[int, int]:
        """Where a partition goes on, and the number of the seek that led there. `committed` is negative if there is no commit."""
        seek = self._steering.seek_of(*place)
        asked = 0 if seek is None else seek.number
        if committed >= 0:
            # Whoever moves the group's offsets by hand does so after all seeks.
            done = asked if said is None else said.seek
            if seek is not None and asked > done:
                return self._target(place, seek, low, high), asked
            if committed < low:
                self.lost += low - committed
                self._complain("retention deleted records before the mapping read them", f" ({low - committed} of {place[0]})")
            return max(committed, low), done
        if place[0] in self._born or self._grown(*place, count):
            return low, asked
        return self._beginning(place, low, high) if seek is None else self._target(place, seek, low, high), asked

    def _lane(self, start: int) -> Lane:
        return Lane(self._loop, self._appends, start, self._may_append)

    def _here(self, start: int) -> Position:
        """A position from which nothing has been appended yet."""
        return Position(start, [max(0, end) for end in self._appends.ends])

    def _ends_of(self, place: Place) -> tuple[int, int]:
        """Where a partition begins and ends. A broker tells of a topic that has just been made before it leads its partitions.
        Raises KafkaException."""
        until = time.monotonic() + LOOK_S
        while True:
            try:
                low, high = self._consumer.get_watermark_offsets(TopicPartition(*place), timeout=CALL_S)
            except KafkaException as failed:
                if failed.args[0].code() not in _NOT_YET or time.monotonic() > until:
                    raise
                time.sleep(0.1)
            else:
                return low, high

    def _look(self, looks: dict[Place, tuple[_Partition, list[int]]]) -> None:
        """Begin to look at the log for what former owners of these partitions have appended."""
        if not looks:
            return
        floors = [min(each) for each in zip(*(floors for _, floors in looks.values()), strict=True)]
        wanted = {place: Look(part.lane.mark, part.seek) for place, (part, _) in looks.items()}
        most = self._limits.mapping_records + BATCH
        mapping = self._mapping
        scan = LogScan(self._config, self._appends.log, floors, wanted, most, app=mapping.app, mapping=mapping.id)
        self._scans.append(scan)
        for part, _ in looks.values():
            part.scan = scan

    def _beginning(self, place: Place, low: int, high: int) -> int:
        """Where a partition begins that was never read. Raises KafkaException."""
        match self._mapping.config.start:
            case "earliest":
                return low
            case "latest":
                return high
            case at:
                return self._offset_at(place, at, high)

    def _offset_at(self, place: Place, at_ms: int, high: int) -> int:
        """The first record that is not older; `high` if there is none. Raises KafkaException."""
        (found,) = self._consumer.offsets_for_times([TopicPartition(*place, at_ms)], timeout=CALL_S)
        if found.error is not None:
            raise KafkaException(found.error)
        return int(found.offset) if found.offset >= 0 else high

    def _grown(self, topic: str, number: int, count: int) -> bool:
        """Whether the partition was added to its topic after the mapping had begun with the others: it holds nothing older."""
        others = [TopicPartition(topic, other) for other in range(count) if other != number]
        known: list[Committed] = []
        for at in self._consumer.committed(others, timeout=CALL_S) if others else []:
            if at.offset >= 0 and (said := read_metadata(at.metadata, self._appends.log)) is not None:
                known.append(said)
        return bool(known) and number >= min(said.partitions for said in known)

    def _revoked(self, _consumer: object, partitions: list[TopicPartition]) -> None:
        places = [(at.topic, at.partition) for at in partitions]
        try:
            self._settle(places)
        except KafkaException as failed:  # the next owner finds in the log what was appended
            self._complain(f"commit before a rebalance: {failed.args[0].name()}")
        self._drop(places)
        self._consumer.incremental_unassign(partitions)

    def _gone(self, _consumer: object, partitions: list[TopicPartition]) -> None:
        """Another member has the partitions already: nothing to commit."""
        self._drop([(at.topic, at.partition) for at in partitions])
        self._consumer.incremental_unassign(partitions)

    def _settle(self, places: list[Place]) -> None:
        """Wait shortly for un-reported appends of these partitions, appending nothing new, and commit."""
        mine = [self._parts[place].lane for place in places if place in self._parts]
        if self._dead is not None:
            self._dead.flush(DRAIN_S)
        for lane in mine:
            self._call(lane.close)
        until = time.monotonic() + DRAIN_S
        while not all(lane.final for lane in mine) and time.monotonic() < until:
            time.sleep(0.01)
        self._commit(wait=True)

    def _drop(self, places: list[Place]) -> None:
        for place in places:
            part = self._parts.pop(place, None)
            self._paused.discard(place)
            if part is not None:
                self._call(part.lane.close)
        while self._scans and not any(place in self._parts for place in self._scans[0].places):
            self._scans.popleft().close()

    def _snapshot(self) -> None:
        """What the next commit will say."""
        for part in self._parts.values():
            self._call(part.lane.snapshot)

    def _commit(self, *, wait: bool) -> None:
        """What has moved on, or was not said for long."""
        now = time.monotonic()
        positions: dict[Place, tuple[_Partition, Position]] = {}
        for place, part in self._parts.items():
            position = part.lane.position
            if position is None or part.scan is not None or position.mark < part.already_until:
                continue
            part.already = set()
            if part.committed is None or position.mark != part.committed.mark or now - part.committed_at >= REFRESH_S:
                positions[place] = (part, position)
        self._commit_positions(positions, wait=wait)

    def _begin(self) -> None:
        """Commit where partitions begin; then the mapping is ready. Raises KafkaException."""
        begun = {place: begun for place, begun in self._begun.items() if self._parts.get(place) is begun[0]}
        try:
            self._commit_positions(begun, wait=True)
        except KafkaException as refused:
            if refused.args[0].code() not in _REBALANCING:
                raise
            return
        self._begun = {}
        self._ready.set()

    def _commit_positions(self, positions: dict[Place, tuple[_Partition, Position]], *, wait: bool) -> list[KafkaError]:
        """With `wait`: why Kafka did not take single ones of them. Raises KafkaException."""
        if not positions:
            return []
        offsets = []
        for place, (part, position) in positions.items():
            metadata = write_metadata(self._appends.log, part.count, position.floors, part.seek)
            offsets.append(TopicPartition(*place, position.mark, metadata))
        taken = self._consumer.commit(offsets=offsets, asynchronous=not wait)
        errors = {(each.topic, each.partition): each.error for each in taken or () if each.error is not None}
        now = time.monotonic()
        for place, (part, position) in positions.items():
            if place not in errors:  # what was not taken is said again with the next commit
                part.committed = position
                part.committed_at = now
        return list(errors.values())

    def _may_append(self) -> bool:
        """On the loop: whether the thread came round lately, and so the group cannot have given the partitions to others."""
        return time.monotonic() < self._lease_until

    def _renew_lease(self) -> None:
        if time.monotonic() < self._lease_until or self._still_member():
            self._lease_until = time.monotonic() + LEASE_S

    def _still_member(self) -> bool:
        """Ask by repeating a commit, which is refused to whoever is not in the group any more."""
        positions = {place: (part, part.committed) for place, part in self._parts.items() if part.committed is not None}
        try:
            self._commit_positions(positions, wait=True)
        except KafkaException as refused:
            self._complain(f"this core may have lost its partitions: {refused.args[0].name()}")
            return False
        return bool(positions) or not self._parts

    def _look_at_ends(self) -> None:
        """Ends of partitions, for the lag: the driver knows those that it reads, for the others Kafka is asked."""
        for place, part in self._parts.items():
            try:
                _, end = self._consumer.get_watermark_offsets(TopicPartition(*place), timeout=1.0, cached=place not in self._paused)
            except KafkaException:
                return
            if end >= 0:
                part.end = max(end, part.end)

    def _complain(self, what: str, detail: str = "") -> None:
        """Log, at most once a minute for the same trouble."""
        now = time.monotonic()
        self._trouble = (time.time_ns() // 1_000_000, what + detail)
        if self._complained.get(what, 0.0) <= now:
            if len(self._complained) > 1_000:
                self._complained.clear()
            self._complained[what] = now + COMPLAIN_S
            log.warning("mapping %s: %s%s", self._mapping.id, what, detail)


def _size(record: SourceRecord) -> int:
    return len(record.value or b"") + len(record.key or b"")

"""Runs the rules: reads the log, writes your topics, exactly once for `read_committed` consumers of the same cluster.

Each transaction holds the records that a span of the log gives and the log offsets behind that span, so that both become visible together
or not at all. A new run goes on from the committed offsets; its duplicate verdicts begin `LOOK_BACK_S` earlier.
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import confluent_kafka
from confluent_kafka import KafkaError, KafkaException, TopicPartition

from core.fold import Fold
from core.kafka.config import LOOK_BACK_S, KafkaConfig
from core.kafka.consumer import KafkaThread, open_consumer, read_batch
from core.kafka.logs import log
from core.kafka.records import log_record
from core.kafka.targets import TargetTopics, fault_of
from core.kafka.topics import StreamInfo
from core.rules import Output, Rule, RuleSet
from relay.model.limits import CoreLimits

CALL_S = 10.0
"""Longest wait for one answer of Kafka, and the transaction time-out: after a kill, readers of the target topics wait no longer for an
open transaction than this."""
COMMIT_S = 0.05
"""Shortest time between two commits that write something, in seconds."""
QUIET_COMMIT_S = 5.0
"""Time between commits of offsets when no record of the log matched a rule."""
IDLE_POLL_S = 0.1
"""Longest wait for a record of the log, and so for `close` to be noticed."""
OVERHEAD = 100
"""Bytes that a record costs beside key, value and headers, for the bound of a span."""
MAX_REDO = 5
"""Attempts at one span before producer and consumer are made anew."""
COMPLAIN_S = 60.0
"""The same rule's same trouble is logged at most this often."""
CLOSE_S = 15.0
"""Longest wait for the thread to end."""


@dataclass(slots=True)
class _Span:
    """What one transaction will hold: outputs, and per partition the next offset and the latest broker time."""

    outputs: list[Output] = field(default_factory=list)
    size: int = 0
    records: int = 0
    offsets: dict[int, tuple[int, int]] = field(default_factory=dict)


class RuleRunner(KafkaThread):
    """One thread, one consumer of all partitions, one transactional producer. Run by one core: a second one fences the first.

    After any failure (fenced, fatal, unreachable) producer and consumer are made anew, with backoff, and go on from what is committed.
    """

    def __init__(
        self,
        config: KafkaConfig,
        stream: StreamInfo,
        rules: Iterable[Rule],
        *,
        site: str,
        limits: CoreLimits,
        create_topics: bool = False,
    ) -> None:
        """`site` is what records name as their origin. `create_topics`: make target topics that are missing (dev only).

        Raises ConfigError when two rules of an app share an id.
        """
        super().__init__("tidegate-rules")
        self._config = config
        self._stream = stream
        self._rules = RuleSet(rules, site=site)
        self._limits = limits
        self._create_topics = create_topics
        self._ready = threading.Event()
        self._complained: dict[tuple[str, str], float] = {}
        self._rule_topics: dict[str, set[str]] = {}
        self.group = f"{config.prefix}.rules"
        """Consumer group that holds the offsets; also the transactional id."""
        self.written: Counter[str] = Counter()
        """Records written, by rule. Readable from any thread, like all counters here."""
        self.dropped: Counter[tuple[str, str]] = Counter()
        """Records that could not be written, by (rule, reason)."""
        self.duplicates = 0
        self.lost = 0
        """Records of the log that retention had deleted before the rules saw them."""

    @property
    def ready(self) -> bool:
        """Every message published from now on will be seen: the starting offsets are committed and reading has begun."""
        return self._ready.is_set()

    def start(self) -> None:
        """Opens the thread. Without rules there is nothing to run."""
        if not self._rules.rules:
            self._ready.set()
            return
        super().start()

    async def close(self, timeout_s: float = CLOSE_S) -> None:
        """Ends the thread after the transaction that it is in."""
        await super().close(timeout_s)

    # --- the thread ------------------------------------------------------------------------------------------------------------------

    def run(self) -> None:
        _Run(self).run()

    def complain(self, who: str, what: str, detail: str = "") -> None:
        """Log, at most once a minute for the same trouble, whatever its detail."""
        now = time.monotonic()
        if self._complained.get((who, what), 0.0) > now:
            return
        if len(self._complained) > 1_000:
            self._complained.clear()
        self._complained[who, what] = now + COMPLAIN_S
        log.warning("%s: %s%s", who, what, detail)

    def drop(self, rule: str, reason: str, detail: str = "") -> None:
        self.dropped[rule, reason] += 1
        self.complain(f"rule {rule}", f"records are dropped: {reason.replace('_', ' ')}", detail)

    def within_topics(self, output: Output) -> bool:
        """Whether the rule may write to one more topic, if this is one."""
        topics = self._rule_topics.setdefault(output.rule, set())
        if output.topic not in topics:
            if len(topics) >= self._limits.rule_topics:
                return False
            topics.add(output.topic)
        return True


class _Run:
    """From one start to the next: a producer, a consumer, and the fold that goes with its position."""

    def __init__(self, owner: RuleRunner) -> None:
        self._owner = owner
        self._config, self._stream, self._limits = owner._config, owner._stream, owner._limits
        self._consumer = open_consumer(
            self._config,
            "rules",
            group_id=owner.group,
            isolation_level="read_committed",  # also waits for offsets of a transaction that is just being finished
            allow_auto_create_topics=False,
            fetch_wait_max_ms=10,
        )
        self._producer = self._new_producer()
        self._targets = TargetTopics(self._config, self._consumer, create=owner._create_topics, timeout_s=CALL_S)
        self._fold = Fold(self._limits.fold_ids, os.urandom(16))
        self._first: dict[int, int] = {}
        self._committed: dict[int, int] = {}
        self._span = _Span()
        self._plain_offsets: list[TopicPartition] = []
        self._committed_at = 0.0

    def _new_producer(self) -> confluent_kafka.Producer:
        return confluent_kafka.Producer(
            self._config.client(
                "rules",
                transactional_id=self._owner.group,
                transaction_timeout_ms=int(CALL_S * 1000),
                message_timeout_ms=int(CALL_S * 1000),
                linger_ms=1,
                partitioner="murmur2_random",  # as Java producers place keys
                retry_backoff_ms=5,
                topic_metadata_propagation_max_ms=1_000,
                allow_auto_create_topics=False,
            )
        )

    def run(self) -> None:
        """Until `close`. Raises KafkaException."""
        try:
            self._producer.init_transactions(CALL_S)
            self._begin()
            self._owner._ready.set()
            while not self._owner.closing.is_set():
                self._read()
                if self._due():
                    self._commit()
            if self._span.outputs:
                self._commit()
        finally:
            self._consumer.close()
            self._discard()

    # --- where to begin --------------------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        topic, owner = self._stream.topic, self._owner
        partitions = [TopicPartition(topic, number) for number in range(self._stream.partitions)]
        committed = self._consumer.committed(partitions, timeout=CALL_S)
        seen: dict[int, int] = {}
        low: dict[int, int] = {}
        new: dict[int, tuple[int, int]] = {}
        for at in committed:
            if at.error is not None:
                raise KafkaException(at.error)
            number = at.partition
            self._committed[number] = max(at.offset, 0)
            bottom, top = self._consumer.get_watermark_offsets(TopicPartition(topic, number), timeout=CALL_S)
            low[number] = bottom
            stream, timestamp = _metadata(at.metadata)
            if at.offset < 0:  # never ran: a new rule starts now
                self._first[number], seen[number] = top, _now_ms()
                new[number] = (top, seen[number])
            elif stream not in ("", self._stream.stream):  # the log was made anew: all of it is news
                self._first[number], seen[number] = bottom, 0
            else:
                self._first[number], seen[number] = min(max(at.offset, bottom), top), timestamp
                if at.offset < bottom:
                    owner.lost += bottom - at.offset
                    owner.complain("rules", f"retention deleted {bottom - at.offset} records of {topic} before the rules saw them")
        starts = self._look_back(seen, low)
        self._consumer.assign([TopicPartition(topic, number, offset) for number, offset in starts.items()])
        if new:
            self._span.offsets |= new
            self._commit()

    def _look_back(self, seen: dict[int, int], low: dict[int, int]) -> dict[int, int]:
        """Where to read from, so that every record from `_first` on gets the verdict that all other readers give it.

        `seen` is the broker time of the last record before `_first` (0: unknown). What follows is no older, so a look-back from there
        covers the window of all of it.
        """
        starts = {number: low[number] for number in self._first}
        if not self._config.capabilities.offsets_for_times:
            return starts
        asked = [
            TopicPartition(self._stream.topic, number, max(0, timestamp - int(LOOK_BACK_S * 1000)))
            for number, timestamp in seen.items()
            if timestamp
        ]
        for at in self._consumer.offsets_for_times(asked, timeout=CALL_S) if asked else []:
            if at.error is not None:
                raise KafkaException(at.error)
            first = self._first[at.partition]
            starts[at.partition] = first if at.offset < 0 else max(low[at.partition], min(at.offset, first))
        return starts

    # --- reading ---------------------------------------------------------------------------------------------------------------------

    def _read(self) -> None:
        wait = IDLE_POLL_S
        if self._span.outputs:
            wait = max(0.0, min(wait, self._committed_at + COMMIT_S - time.monotonic()))
        for message in read_batch(self._consumer, self._limits.rule_span_records, wait):
            self._take(message)
        self._producer.poll(0)  # the driver's log lines wait in memory until somebody polls

    def _take(self, message: confluent_kafka.Message) -> None:
        error = message.error()
        if error is not None:
            if error.fatal() or error.code() in _LOST_POSITION:
                raise KafkaException(error)
            self._owner.complain("rules", f"reading the log: {error.name()}")
            return  # librdkafka goes on by itself
        record = log_record(message, self._stream.stream)
        number, offset = record.partition, record.offset
        first = self._fold.see(number, record.key, record.id, record.timestamp, offset)
        if offset < self._first[number]:
            return
        span = self._span
        span.records += 1
        _, latest = span.offsets.get(number, (0, 0))
        span.offsets[number] = (offset + 1, max(latest, record.timestamp))
        if first is not None:
            self._owner.duplicates += 1
            return
        outcome = self._owner._rules.outcome(record)
        for drop in outcome.drops:
            self._owner.drop(drop.rule, drop.reason)
        span.outputs += outcome.outputs
        span.size += sum(_size(output) + OVERHEAD for output in outcome.outputs)
        if span.size >= self._limits.rule_span_bytes:
            self._commit()

    def _due(self) -> bool:
        span = self._span
        if not span.offsets:
            return False
        since = time.monotonic() - self._committed_at
        if span.outputs:
            return since >= COMMIT_S or len(span.outputs) >= self._limits.rule_span_records
        return since >= QUIET_COMMIT_S

    # --- writing ---------------------------------------------------------------------------------------------------------------------

    def _commit(self) -> None:
        """The span in one transaction. What cannot be written is dropped and counted; the rest is written without it."""
        self._committed_at = time.monotonic()
        outputs = self._span.outputs
        alone: set[int] = set()
        tries = MAX_REDO
        while tries:
            outputs, alone = self._writable(outputs, alone)
            refused: dict[int, KafkaError] = {}
            try:
                self._transact(outputs, alone, refused)
            except KafkaException as failed:
                error = failed.args[0]
                if error.fatal() or not (refused or error.txn_requires_abort()):
                    raise
                why = next(iter(refused.values()), error)
                self._owner.complain("rules", f"transaction aborted: {why.name()}")
                alone, learnt = self._learn(outputs, refused)
                tries -= not learnt
                self._replace_producer()
            else:
                self._owner.written.update(output.rule for output in outputs)
                self._committed |= {number: offset for number, (offset, _) in self._span.offsets.items()}
                self._span = _Span()
                return
        raise _again("a transaction failed repeatedly")

    def _transact(self, outputs: list[Output], alone: set[int], refused: dict[int, KafkaError]) -> None:
        """Raises KafkaException; `refused` then has the outputs that the broker did not take, by index."""
        self._producer.begin_transaction()
        for index, output in enumerate(outputs):
            self._produce(index, output, refused)
            if index in alone:
                self._producer.flush(CALL_S)
                if refused:
                    raise KafkaException(next(iter(refused.values())))
        self._send_offsets()
        self._producer.commit_transaction(CALL_S)
        self._commit_plainly()

    def _replace_producer(self) -> None:
        """After an abort. The same producer could go on by its documentation, but after a batch that was too large its next transaction
        fails with OUT_OF_ORDER_SEQUENCE_NUMBER (librdkafka 2.16, Kafka 4.1).

        Nobody else may have gone on in our place meanwhile: then the span is theirs.
        """
        self._discard()
        self._producer = self._new_producer()
        self._producer.init_transactions(CALL_S)
        partitions = [TopicPartition(self._stream.topic, number) for number in self._committed]
        for at in self._consumer.committed(partitions, timeout=CALL_S):
            if at.error is not None:
                raise KafkaException(at.error)
            if max(at.offset, 0) != self._committed[at.partition]:
                raise _again("the committed offsets are not ours")

    def _discard(self) -> None:
        """What is left in the producer's queue belongs to a transaction that will never be committed."""
        self._producer.purge()
        self._producer.flush(1.0)

    def _writable(self, outputs: list[Output], alone: set[int]) -> tuple[list[Output], set[int]]:
        """Outputs without those that cannot be written, and where those to be sent alone are among them."""
        faults = self._targets.faults({output.topic for output in outputs})
        writable: list[Output] = []
        still: set[int] = set()
        for index, output in enumerate(outputs):
            if output.topic in faults:
                self._owner.drop(output.rule, faults[output.topic], f" ({output.topic})")
            elif not self._owner.within_topics(output):
                self._owner.drop(output.rule, "too_many_topics")
            elif self._targets.too_large(output.topic, _size(output)):
                self._owner.drop(output.rule, "too_large", f" ({output.topic})")
            else:
                if index in alone:
                    still.add(len(writable))
                writable.append(output)
        return writable, still

    def _learn(self, outputs: list[Output], refused: dict[int, KafkaError]) -> tuple[set[int], bool]:
        """From the delivery reports of an aborted transaction, for the next attempt: which outputs to send alone, and whether a
        topic has turned out not to take what it was sent, so that the next attempt is another one.

        A broker that finds a batch too large refuses all of its records. Sent alone, a record shows what its topic takes.
        """
        too_large = {index for index, error in refused.items() if error.code() in _TOO_LARGE}
        progress = False
        if len(too_large) == 1:
            (index,) = too_large
            self._targets.refuse_size(outputs[index].topic, _size(outputs[index]))
            progress = True
        for index, error in refused.items():
            fault = fault_of(error)
            if fault is not None:
                self._targets.mark(outputs[index].topic, fault)
                progress = True
        topics = {outputs[index].topic for index in too_large}
        return {index for index, output in enumerate(outputs) if output.topic in topics}, progress

    def _produce(self, index: int, output: Output, refused: dict[int, KafkaError]) -> None:
        def delivered(error: KafkaError | None, _message: confluent_kafka.Message) -> None:
            if error is not None:
                refused[index] = error

        give_up = time.monotonic() + CALL_S
        while True:
            try:
                self._producer.produce(output.topic, output.value, output.key, headers=output.headers, on_delivery=delivered)
            except BufferError:  # the producer's queue is full
                if time.monotonic() > give_up:
                    raise _again("the producer's queue does not drain") from None
                self._producer.poll(0.05)
            except KafkaException as failed:
                if failed.args[0].code() not in _TOO_LARGE:
                    raise
                self._targets.refuse_size(output.topic, _size(output))
                self._owner.drop(output.rule, "too_large", f" ({output.topic})")
                return
            else:
                return

    def _send_offsets(self) -> None:
        offsets = [
            TopicPartition(self._stream.topic, number, offset, f"{self._stream.stream}:{timestamp}")
            for number, (offset, timestamp) in self._span.offsets.items()
        ]
        if self._config.capabilities.fencing:
            self._producer.send_offsets_to_transaction(offsets, self._consumer.consumer_group_metadata(), CALL_S)
        else:
            self._plain_offsets = offsets

    def _commit_plainly(self) -> None:
        """The embedded broker forgets offsets that are sent to a transaction (measured): they follow it, which makes it at least once."""
        if self._plain_offsets:
            self._consumer.commit(offsets=self._plain_offsets, asynchronous=False)
            self._plain_offsets = []


_TOO_LARGE = (KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.INVALID_MSG_SIZE, KafkaError.INVALID_RECORD)
_LOST_POSITION = (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE)


def _metadata(text: str | None) -> tuple[str, int]:
    """(stream id, broker time in ms) of a committed offset; ("", 0) if it carries none."""
    stream, _, timestamp = (text or "").partition(":")
    return (stream, int(timestamp)) if timestamp.isdecimal() else ("", 0)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _size(output: Output) -> int:
    """Bytes of one record, without what its batch adds."""
    headers = sum(len(name) + len(value or b"") for name, value in output.headers)
    return len(output.value) + len(output.key or b"") + headers


def _again(reason: str) -> KafkaException:
    """Ends this run; the next one starts from what is committed."""
    return KafkaException(KafkaError(KafkaError._STATE, reason))

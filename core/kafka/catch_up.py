"""Rules that are parked catch up: a thread of its own beside the owner's, with a producer and transactions of its own.

Each transaction holds what one rule makes of a span of the log, and the rule's cursor behind it. What keeps it exactly once when the
partition goes to another core: the transaction carries an offset in the name of this member of the owners' group, as of a moment at which
the partition was surely its own, and the group is asked when all the rest is with the brokers. So either the group refuses it, or whoever
owns the partition next finds it in the state, and waits for its end or ends it.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from typing import Any, NamedTuple, Protocol

from confluent_kafka import KafkaError, KafkaException, TopicPartition

from core.kafka.config import KafkaConfig
from core.kafka.consumer import open_consumer, wrapped
from core.kafka.log_reader import LogReader, open_reader
from core.kafka.logs import log
from core.kafka.targets import TargetTopics
from core.kafka.topics import StreamInfo
from core.kafka.transactions import CALL_S, Blocked, Refused, StateRecord, Transactions, again, transactional_id
from core.ownership import OwnedPartition
from core.parked import Fault, ParkedRule
from core.remote import Place
from core.rules import Output, Rule
from relay.model.limits import CoreLimits

IDLE_S = 0.02
"""Longest wait for something to do, in seconds."""
TURN_S = 5.0
"""How long one rule on one partition catches up while others wait for their turn, in seconds."""
RETENTION_LOOK_S = 10.0
"""Time between two looks at what retention has left of a partition, in seconds, for rules that wait."""
QUIET_RECORDS = 20_000
"""Records of the log that gave the rule nothing to write, after which its cursor is written all the same."""
CLOSE_S = 12.0
"""Longest wait for the thread to end, in seconds: as long as one call to Kafka."""


class Parked(NamedTuple):
    """One rule, of the partition as its owner has it."""

    rule: ParkedRule
    owned: OwnedPartition


class Account(Protocol):
    """What is asked of `core.kafka.owner.OwnerRunner`."""

    core: str
    limits: CoreLimits
    create_topics: bool

    def wrote(self, outputs: list[Output]) -> None: ...

    def drop(self, rule: str, reason: str, detail: str = "") -> None: ...

    def lose(self, rule: str, partition: int, records: int) -> None: ...

    def within_topics(self, output: Output) -> bool: ...

    def complain(self, who: str, what: str, detail: str = "") -> None: ...

    def encode(self, output: Output) -> Output | Fault | None: ...


class CatchUp:
    """`watch` and `close` are called by the owner's thread, and `group` is set by it: the metadata of its member as of the last assignment.

    `failed` is set when it cannot be told what became of a transaction: the owner has to begin again from the state.
    """

    def __init__(self, config: KafkaConfig, stream: StreamInfo, state_topic: StreamInfo, account: Account) -> None:
        self._config = config
        self._stream = stream
        self._state_topic = state_topic
        self._account = account
        self._limits = account.limits
        self.group: Any = None
        self.failed: KafkaException | None = None
        self.opened = False
        """What a former life of this core has left open was ended."""
        self._closing = threading.Event()
        self._inbox: queue.SimpleQueue[Parked] = queue.SimpleQueue()
        self._waiting: deque[Parked] = deque()
        self._lows: dict[int, tuple[float, int]] = {}
        self._consumer = open_consumer(config, "parked", allow_auto_create_topics=False)
        self._targets = TargetTopics(config, self._consumer, create=account.create_topics, written=True, timeout_s=CALL_S)
        self._transactions: Transactions | None = None
        self._thread = threading.Thread(target=self._run, name="tidegate-parked", daemon=True)
        self._thread.start()

    def watch(self, rule: ParkedRule, owned: OwnedPartition) -> None:
        """The rule's cursor is in the state by now."""
        self._inbox.put(Parked(rule, owned))

    def stop(self) -> None:
        """Asks the thread to end."""
        self._closing.set()

    def close(self) -> None:
        self.stop()
        self._thread.join(CLOSE_S)

    # --- the thread ------------------------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._closing.is_set() and self.failed is None:
                self._take_in()
                wrapped(self._turn)
        except Exception as failed:  # the owner's thread says so, and begins again
            log.exception("catching up failed")
            self.failed = again(f"catching up: {type(failed).__name__}")
        finally:
            if self._transactions is not None:
                self._transactions.close()
            self._consumer.close()

    def _take_in(self) -> None:
        while not self._inbox.empty():
            self._waiting.append(self._inbox.get())

    def _turn(self) -> None:
        """One rule that is due and can write catches up, as far as it gets."""
        now = time.monotonic()
        self._waiting = deque(each for each in self._waiting if not each.rule.gone)
        for parked, _ in self._waiting:
            if parked.tried is not parked.by:  # what was wrong with it may be right by now
                parked.tried, parked.failures, parked.retry_at = parked.by, 0, 0.0
        due = [each for each in self._waiting if not each.rule.offered and each.rule.retry_at <= now]
        try:
            each = self._first_able(due)
        except KafkaException as failed:  # no broker answers
            self._account.complain("parked rules", "asking for topics", f": {failed.args[0].name()}")
            self._closing.wait(1.0)
            return
        if each is None:
            self._closing.wait(IDLE_S)
            return
        self._waiting.remove(each)
        self._waiting.append(each)
        try:
            self._attempt(each)
        except Blocked as blocked:
            at, fault = next(iter(sorted([*blocked.faults.items(), *blocked.rules.items()])))
            self._blocked(each, fault, f" ({at})")
        except Refused as refused:
            self._unknown(refused.error)
            if refused.final:
                self._drop_producer()
            each.rule.retry_at = time.monotonic() + 0.2  # the group is being put together anew
        except KafkaException as failed:
            error = failed.args[0]
            self._unknown(error)
            self._drop_producer()
            self._blocked(each, "transaction_failed", f" ({error.name()})")

    def _unknown(self, error: KafkaError) -> None:
        """Whether the last transaction was committed is for the state to say."""
        if self._transactions is not None and self._transactions.committing and not error.txn_requires_abort():
            self.failed = again(f"catching up: {error.name()}")

    def _blocked(self, each: Parked, reason: str, detail: str) -> None:
        each.rule.failed(reason, time.monotonic())
        self._account.complain(f"rule {each.rule.rule}", f"still parked: {reason.replace('_', ' ')}", detail)

    def _drop_producer(self) -> None:
        transactions, self._transactions = self._transactions, None
        if transactions is not None:
            transactions.close()

    def _open(self) -> Transactions:
        """Ends what a former life of this core has left open. Raises KafkaException."""
        account = self._account
        if self._transactions is None:
            transactions = Transactions(
                self._config,
                transactional_id(self._config, account.core, parked=True),
                self._state_topic.topic,
                self._targets,
                drop=lambda output, reason, detail: account.drop(output.rule, reason, detail),
                admit=account.within_topics,
                say=lambda what: account.complain("parked rules", what),
                encode=account.encode,
                checked_last=True,
            )
            transactions.open()
            self._transactions, self.opened = transactions, True
        return self._transactions

    def _first_able(self, due: list[Parked]) -> Parked | None:
        """The first whose topic can be written to. The others go on waiting; all topics are asked for at once. Raises KafkaException."""
        for parked, owned in due:
            self._look_at_retention(parked)
            self._offer(parked, owned.committed or 0)
        due = [each for each in due if not each.rule.offered]
        topics = {topic for each in due if (topic := self._topic(each.rule))}
        faults = self._targets.faults(topics) if topics else {}
        able = None
        for each in due:
            topic = self._topic(each.rule)
            if topic in faults:
                self._blocked(each, faults[topic], f" ({topic})")
            elif able is None:
                able = each
        return able

    def _topic(self, parked: ParkedRule) -> str:
        """Empty if there may be several."""
        return parked.topic or parked.by.topic or ""

    # --- one rule --------------------------------------------------------------------------------------------------------------------

    def _attempt(self, each: Parked) -> None:
        """Raises Blocked, Refused, KafkaException."""
        consumer, transactions = self._consumer, self._open()
        parked, owned = each
        parked.catching_up = True
        rule = parked.by
        reader = self._reader(consumer, parked, rule)
        try:
            until = time.monotonic() + TURN_S
            while not (self._closing.is_set() or parked.gone):
                self._take_in()
                if parked.by is not rule or (time.monotonic() > until and len(self._waiting) > 1):
                    return
                if parked.offered:
                    self._closing.wait(IDLE_S / 4)
                    continue
                to = owned.committed or 0  # the cursor ends where a span of the owner begins
                done = min(to, parked.newest + 1)
                if parked.cursor < done:
                    self._step(each, reader, transactions, min(done, to))
                if parked.cursor >= done:
                    self._offer(parked, to)
        finally:
            consumer.unassign()

    def _offer(self, parked: ParkedRule, to: int) -> bool:
        """If nothing is left to be written before `to`, where a span of the owner began."""
        if parked.cursor <= parked.newest and parked.cursor < to:
            return False
        parked.cursor = max(parked.cursor, to)
        parked.offered = True
        return True

    def _look_at_retention(self, parked: ParkedRule, age_s: float = RETENTION_LOOK_S) -> int:
        """What retention has deleted is told, and the cursor moves on. Returns where the log begins, as of `age_s` ago at most."""
        number, now = parked.partition, time.monotonic()
        at, low = self._lows.get(number, (-RETENTION_LOOK_S, 0))
        if now - at >= age_s:
            low, _ = self._consumer.get_watermark_offsets(TopicPartition(self._stream.topic, number), timeout=CALL_S)
            self._lows[number] = now, low
        lost = parked.lost(low)
        if lost:
            self._account.lose(parked.rule, number, lost)
        return low

    def _reader(self, consumer: Any, parked: ParkedRule, rule: Rule) -> LogReader:
        return open_reader(
            self._config, self._stream, consumer, rule, parked.partition, Place(parked.cursor, parked.time),
            low=self._look_at_retention(parked, 0.0), core=self._account.core, limits=self._limits, closing=self._closing,
        )  # fmt: skip

    def _step(self, each: Parked, reader: LogReader, transactions: Transactions, to: int) -> None:
        """Read on, at most up to `to`, and write what there is. Raises like `Transactions.write`."""
        parked, owned = each
        group = self.group
        if parked.gone or owned.given_up:  # until now it was ours, and so it was when the metadata was taken
            return
        reader.read(to, lambda: parked.gone)
        if parked.gone or self._closing.is_set():
            return
        span = reader.span
        span.combine()
        outputs = [output for output in span.outputs if parked.covers(output)]
        parked.writing = True
        try:
            if each.rule.gone:  # looked at once more: who gives it up waits for the end of a transaction, and lets none begin
                return
            if outputs or span.position - reader.written >= QUIET_RECORDS:
                states = [StateRecord(parked.partition, parked.key, parked.at(span.position, span.time))]
                offsets = [TopicPartition(self._state_topic.topic, parked.partition, span.position)]
                written = transactions.write(outputs, states, offsets, lambda: group)
                self._account.wrote(written)
                reader.written = span.position
                parked.failures = 0
            span.done()
            if span.position > parked.cursor:
                parked.cursor, parked.time = span.position, span.time
        finally:
            parked.writing = False

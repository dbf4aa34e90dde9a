"""Appending to the log, with the one promise that publishers live by: a record that was handed to Kafka ends as durable or as of unknown
fate, never as refused.

Why never refused: measured with a broker that was stopped past the time-out, three publishes were reported as timed out and all three were
in the log afterwards. So `Overfull` (safe to refuse) is said only before the hand-over, by the budgets of a partition or while the driver's
producer is being replaced; everything after it is `Reported`.

Why replaced: what is un-reported in a partition is always a run of records whose written part is a prefix (idempotent producer). Keeping it
so is what keeps a publisher's order when it sends again under the same ids:

* Fatal error (the broker lost or fenced the producer's state): queues are closed and emptied, reports drained, and a new producer appends
  the un-reported run again, first and in order, under the same ids, for readers to drop what was there already.
* Time-out, or any other failure of one record: a later record must not overtake it, so the queues are purged at once and the whole run is
  of unknown fate. Nothing of it is appended again.

Our own clock purges shortly before `message.timeout.ms` would strike: librdkafka times out record by record, and between its report of the
first and our purge the second could be sent.

Threads: `append` runs on the loop; one thread polls, sees reports and replaces producers. They share the driver's producer and the table
of un-reported records under one lock, held for a few microseconds.
"""

from __future__ import annotations

import asyncio
import enum
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import confluent_kafka
from confluent_kafka import KafkaError, KafkaException

from core.events import Event, Overfull, Reported
from core.kafka.config import KafkaConfig
from core.kafka.consumer import wrapped
from core.kafka.logs import log
from core.kafka.outlet import Deliver, Outlet
from core.kafka.records import headers
from core.kafka.topics import StreamInfo
from relay.model.limits import CoreLimits

OVERHEAD = 100
"""Bytes that a record costs beside key and value, for the budgets."""
DRAIN_S = 5.0
"""How long a replaced or closing producer may take to give its last reports."""

MakeProducer = Callable[[dict[str, Any]], Any]


class Trouble(enum.Enum):
    """Why a producer has to be replaced."""

    FATAL = "fatal error"
    LATE = "time-out"
    FAILED = "failed record"


class _Pending:
    """One un-reported record."""

    __slots__ = ("born", "headers", "key", "partition", "size", "ticket", "value")

    def __init__(
        self, ticket: int, partition: int, key: bytes, value: bytes, headers: list[tuple[str, str | bytes | None]], size: int, born: float
    ) -> None:
        self.ticket = ticket
        self.partition = partition
        self.key = key
        self.value = value
        self.headers = headers
        self.size = size
        self.born = born


class _Settled:
    """A report on its way to the loop."""

    __slots__ = ("offset", "pending")

    def __init__(self, pending: _Pending, offset: int | None) -> None:
        self.pending = pending
        self.offset = offset


class _Refusal:
    """A refusal on its way to the loop."""

    __slots__ = ("partition", "ticket", "why")

    def __init__(self, ticket: int, partition: int, why: str) -> None:
        self.ticket = ticket
        self.partition = partition
        self.why = why


class LogProducer:
    """Every `append` is answered by exactly one event, always: `Reported` or `Overfull`.

    `replaced` counts replacements, `unknown` records of unknown fate, `refused` those refused for want of budget: for metrics.
    """

    __slots__ = (
        "_bytes", "_closing", "_config", "_counts", "_ending", "_generation", "_limits", "_lock", "_make", "_newest", "_open", "_outlet",
        "_producer", "_refusing", "_replaced_at", "_reports", "_stream", "_thread", "_trouble", "_unreported", "refused", "replaced",
        "unknown",
    )  # fmt: skip

    def __init__(
        self,
        config: KafkaConfig,
        stream: StreamInfo,
        limits: CoreLimits,
        loop: asyncio.AbstractEventLoop,
        deliver: Deliver,
        make: MakeProducer = confluent_kafka.Producer,
    ) -> None:
        self._config = config
        self._stream = stream
        self._limits = limits
        self._make = make
        self._outlet = Outlet(loop, self._settle(deliver))
        self._lock = threading.Lock()
        self._unreported: dict[int, _Pending] = {}
        """By order of append, which is the order of the dictionary."""
        self._newest = 0
        self._bytes = [0] * stream.partitions
        self._counts = [0] * stream.partitions
        self._refusing = [0] * stream.partitions
        """Refusals that have not been told yet. Until they are, nothing more is taken: whoever sent it could not know better."""
        self._reports: list[_Settled] = []
        self._trouble: Trouble | None = None
        self._open = False
        """False: the loop touches neither the producer nor the table; the thread may do so without the lock."""
        self._closing = threading.Event()
        self._producer: Any = None
        """None while there is none: `_open` is False then."""
        self._generation = 0
        """Which producer is the present one: reports of an earlier one come too late to count."""
        self._replaced_at = 0.0
        self._ending: list[threading.Thread] = []
        self._thread = threading.Thread(target=self._run, name="tidegate-producer", daemon=True)
        self.replaced = 0
        self.unknown = 0
        self.refused = 0

    # --- on the loop --------------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Does not wait for Kafka: appends are taken at once and go out when a broker answers. Raises KafkaException on bad properties."""
        self._producer = self._new_producer()
        self._open = True
        self._thread.start()

    def append(self, ticket: int, partition: int, key: bytes, value: bytes, kind: int, id: str) -> None:
        """Hand one record to Kafka, or refuse it. Never blocks, never raises."""
        size = len(key) + len(value) + OVERHEAD
        if (
            self._refusing[partition]
            or self._counts[partition] >= self._limits.partition_budget_records
            or self._bytes[partition] + size > self._limits.partition_budget_bytes
        ):
            self._refuse(ticket, partition, "partition budget")
            return
        with self._lock:
            if not self._open:
                refusal = "producer is being replaced"
            else:
                self._newest += 1
                number = self._newest
                self._unreported[number] = pending = _Pending(ticket, partition, key, value, headers(kind, id), size, time.monotonic())
                try:
                    self._hand_over(number, pending)
                except (BufferError, KafkaException) as error:
                    # The driver did not take it, so it will never appear: full, too large, or a fatal error that its thread sees soon.
                    del self._unreported[number]
                    refusal = error.args[0].name() if isinstance(error, KafkaException) else "producer queue"
                else:
                    self._bytes[partition] += size
                    self._counts[partition] += 1
                    return
        self._refuse(ticket, partition, refusal)

    def _refuse(self, ticket: int, partition: int, why: str) -> None:
        self.refused += 1
        self._refusing[partition] += 1
        self._outlet.put([_Refusal(ticket, partition, why)])

    @property
    def unreported(self) -> int:
        """Records handed over and not yet reported."""
        return len(self._unreported)

    def _settle(self, deliver: Deliver) -> Callable[[list[_Settled | _Refusal]], None]:
        """Gives back budgets, on the loop, before anybody acts on the reports."""

        def settle(answers: list[_Settled | _Refusal]) -> None:
            events: list[Event] = []
            for answer in answers:
                if isinstance(answer, _Settled):
                    pending = answer.pending
                    self._bytes[pending.partition] -= pending.size
                    self._counts[pending.partition] -= 1
                    events.append(Reported(pending.ticket, pending.partition, answer.offset))
                else:
                    self._refusing[answer.partition] -= 1
                    events.append(Overfull(answer.ticket, answer.why))
            deliver(events)

        return settle

    async def close(self) -> None:
        """Refuse new records, wait up to 5 s for reports; what is then un-reported is of unknown fate. All answers are given before it
        returns."""
        with self._lock:
            self._open = False
        self._closing.set()
        if self._thread.is_alive():
            await asyncio.to_thread(self._thread.join, 4 * DRAIN_S)
        self._outlet.flush()
        self._outlet.close()

    # --- on the thread ------------------------------------------------------------------------------------------------------------

    def _new_producer(self) -> Any:
        return self._make(
            # 0: a lone publish waits for nothing. Under load records gather anyway while requests are under way.
            {"linger.ms": 0}
            | self._config.client(
                "log",
                acks="all",
                enable_idempotence=True,
                message_timeout_ms=int(self._limits.publish_timeout_s * 1000),
                # Budgets bound what is queued, per partition; these only must never strike first.
                queue_buffering_max_messages=self._limits.partition_budget_records * self._stream.partitions + 1_000,
                queue_buffering_max_kbytes=min(self._limits.partition_budget_bytes * self._stream.partitions // 1024 + 1_024, 2_097_151),
            )
            | {"error_cb": self._on_error}
        )

    def _on_error(self, error: KafkaError) -> None:
        if error.fatal():
            log.error("kafka producer: fatal error %s", error.name())
            self._trouble = Trouble.FATAL
        else:
            log.warning("kafka producer: %s", error.name())

    def _hand_over(self, number: int, pending: _Pending) -> None:
        self._producer.produce(
            self._stream.topic,
            pending.value,
            pending.key,
            pending.partition,
            partial(self._on_delivery, self._generation, number),
            headers=pending.headers,
        )

    def _on_delivery(self, generation: int, number: int, error: KafkaError | None, message: Any) -> None:
        """On the thread that polls. Successes are reported; failures stay in the table for `_replace` to decide about them all."""
        if generation != self._generation:
            return
        if error is None:
            pending = self._unreported.pop(number, None)
            if pending is not None:
                self._reports.append(_Settled(pending, message.offset()))
        elif self._trouble is None:
            # Purge before anything else: no record may be sent that follows the one that failed.
            self._trouble = Trouble.FATAL if error.fatal() or error.code() == KafkaError._FATAL else Trouble.FAILED
            log.error("kafka producer: a record failed with %s", error.name())
            self._shut()

    def _shut(self) -> None:
        """No more records in, and none out."""
        with self._lock:
            self._open = False
        if self._producer is not None:
            self._producer.purge(in_queue=True, in_flight=True, blocking=True)

    def _run(self) -> None:
        # Earlier than librdkafka's own time-out: see the module's docstring
        limit = self._limits.publish_timeout_s - min(2.0, self._limits.publish_timeout_s / 10)
        turn = partial(self._turn, limit)
        while not self._closing.is_set():
            try:
                wrapped(turn)
            except Exception:
                # Whatever it was: without this thread every publish would wait for ever.
                log.exception("kafka producer failed")
                self._trouble = self._trouble or Trouble.FAILED
                self._closing.wait(0.1)
        self._finish()

    def _turn(self, limit: float) -> None:
        if self._trouble is None:
            self._producer.poll(0.1)
            self._flush_reports()
            if self._trouble is None and self._oldest_age() > limit:
                self._trouble = Trouble.LATE
        if self._trouble is not None:
            self._replace(self._trouble)

    def _oldest_age(self) -> float:
        with self._lock:
            oldest = next(iter(self._unreported.values()), None)
        return 0.0 if oldest is None else time.monotonic() - oldest.born

    def _flush_reports(self) -> None:
        if self._reports:
            reports, self._reports = self._reports, []
            self._outlet.put(reports)

    def _drain(self) -> None:
        """Serve the last reports of a purged producer."""
        until = time.monotonic() + DRAIN_S
        while self._producer is not None and len(self._producer) and time.monotonic() < until:
            self._producer.poll(0.05)
        self._flush_reports()

    def _give_up(self, numbers: list[int]) -> None:
        self.unknown += len(numbers)
        self._reports += [_Settled(self._unreported.pop(number), None) for number in numbers]
        self._flush_reports()

    def _replace(self, trouble: Trouble) -> None:
        self._shut()
        self._drain()
        again = self._repeatable() if trouble is Trouble.FATAL else set()
        lost = [number for number in self._unreported if number not in again]
        log.error("kafka producer replaced after %s: %d appended again, %d of unknown fate", trouble.value, len(again), len(lost))
        self._give_up(lost)
        self._dispose()
        since = time.monotonic() - self._replaced_at
        self._closing.wait(max(0.0, 1.0 - since))  # a broker that refuses every producer gets one a second
        self._replaced_at = time.monotonic()
        self.replaced += 1
        self._trouble = None
        self._producer = self._new_producer()
        try:
            for number, pending in list(self._unreported.items()):
                self._hand_over(number, pending)
        except (BufferError, KafkaException):
            self._trouble = Trouble.FAILED  # the next turn gives up the rest, and replaces again
            return
        with self._lock:
            self._open = not self._closing.is_set()

    def _repeatable(self) -> set[int]:
        """What may be appended again: partitions whose un-reported records are all young enough. A run with one that is too old goes as a
        whole, or the rest would overtake it."""
        horizon = time.monotonic() - self._limits.publish_timeout_s
        spoiled = {pending.partition for pending in self._unreported.values() if pending.born < horizon}
        return {number for number, pending in self._unreported.items() if pending.partition not in spoiled}

    def _finish(self) -> None:
        if self._trouble is None:
            self._producer.flush(DRAIN_S)
        self._shut()
        self._drain()
        self._give_up(list(self._unreported))
        self._dispose()
        until = time.monotonic() + DRAIN_S
        for thread in self._ending:
            thread.join(max(0.0, until - time.monotonic()))

    def _dispose(self) -> None:
        """End the present producer, which has nothing left to say. With a broker that hangs librdkafka may take a while: not our while."""
        self._generation += 1
        ended, self._producer = self._producer, None
        if ended is None:
            return
        thread = threading.Thread(target=ended.close, name="tidegate-producer-end", daemon=True)
        thread.start()
        self._ending = [*(ending for ending in self._ending if ending.is_alive()), thread]

"""Where the partitions of a topic end, asked of their leaders: the barrier behind every read that could be answered "absent"."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from typing import Any

from confluent_kafka import KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec

from core.events import EndOffset, Event
from core.kafka.config import KafkaConfig
from core.kafka.outlet import Deliver, Outlet
from core.kafka.topics import StreamInfo
from relay.model.limits import CoreLimits

SHARE_S = 0.002
"""Asks of this span share one request."""
RENEW_S = 1.0
"""Shortest life of an admin client."""


class EndOffsets:
    """Answers every `ask` with one `EndOffset`: the offset after the last record that was acknowledged before the ask; None if Kafka did
    not say in time.

    A request is sent at once when none was sent within the last 2 ms, so a lone ask waits for one round trip only. After a request without
    any answer the driver's client is replaced: measured with a broker that was stopped for 30 s, the same one fails every request for good.
    `answered_at` is when Kafka last answered (loop time), for readiness.
    """

    __slots__ = (
        "_admin",
        "_closed",
        "_config",
        "_deliver",
        "_ending",
        "_flush_at",
        "_limits",
        "_loop",
        "_outlet",
        "_renewed_at",
        "_requests",
        "_stream",
        "_timer",
        "_under_way",
        "_waiting",
        "answered_at",
    )  # fmt: skip

    def __init__(
        self, config: KafkaConfig, stream: StreamInfo, limits: CoreLimits, loop: asyncio.AbstractEventLoop, deliver: Deliver
    ) -> None:
        self._config = config
        self._stream = stream
        self._limits = limits
        self._loop = loop
        self._deliver = deliver
        self._outlet = Outlet(loop, self._settle)
        self._admin: AdminClient | None = None
        self._waiting: dict[int, list[int]] = {}
        """Asks by partition, for the next request."""
        self._under_way = 0
        self._flush_at = 0.0
        self._timer: asyncio.Handle | None = None
        self._closed = False
        self._renewed_at = 0.0
        self._requests: set[_Answer] = set()
        """What is under way, by the answer that it will be."""
        self._ending: set[asyncio.Future[None]] = set()
        """Clients on their way out: letting go of one waits for its threads."""
        self.answered_at: float | None = None

    def start(self) -> None:
        self._admin = AdminClient(self._config.client("ends"))

    def ask(self, ask: int, partition: int) -> None:
        if self._closed or self._under_way >= self._limits.end_asks:
            self._outlet.put([_Answer({partition: [ask]}, {}, answered=False, asks=0)])
            return
        self._under_way += 1
        self._waiting.setdefault(partition, []).append(ask)
        if self._timer is None:
            wait = self._flush_at + SHARE_S - self._loop.time()
            self._timer = self._loop.call_later(wait, self._flush) if wait > 0 else self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._timer = None
        self._flush_at = self._loop.time()
        waiting, self._waiting = self._waiting, {}
        if self._admin is None or not waiting:
            return
        self._admin.poll(0)  # serves the log
        request = {TopicPartition(self._stream.topic, partition): OffsetSpec.latest() for partition in waiting}  # type: ignore[no-untyped-call]
        gather = _Gather(waiting, len(request), self._outlet)
        self._requests.add(gather.answer)
        try:
            futures = self._admin.list_offsets(request, request_timeout=self._limits.end_timeout_s)
        except KafkaException:
            self._outlet.put([gather.answer])
            return
        for place, future in futures.items():
            future.add_done_callback(gather.callback(place.partition))

    def _settle(self, answers: list[_Answer]) -> None:
        events: list[Event] = []
        renewed = False
        for answer in answers:
            if answer.requested and answer not in self._requests:
                continue  # given up with the client that was to bring it
            self._requests.discard(answer)
            self._under_way -= answer.asks
            if answer.answered:
                self.answered_at = self._loop.time()
            else:
                renewed = self._renew() or renewed
            for partition, asks in answer.waiting.items():
                events += [EndOffset(ask, partition, answer.offsets.get(partition)) for ask in asks]
        if renewed:
            # The former client answers nothing any more, not even what it has been asked.
            for answer in self._requests:
                self._under_way -= answer.asks
                events += [EndOffset(ask, partition, None) for partition, asks in answer.waiting.items() for ask in asks]
            self._requests.clear()
        if events:
            self._deliver(events)

    def _renew(self) -> bool:
        if self._admin is None or self._closed or self._loop.time() < self._renewed_at + RENEW_S:
            return False
        self._renewed_at = self._loop.time()
        held = [self._admin]
        self._admin = AdminClient(self._config.client("ends"))
        ending = self._loop.run_in_executor(None, held.clear)
        self._ending.add(ending)
        ending.add_done_callback(self._ending.discard)
        return True

    async def close(self) -> None:
        """Asks under way are answered with None."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        if self._waiting:
            self._outlet.put([_Answer(self._waiting, {}, answered=False, asks=_count(self._waiting))])
            self._waiting = {}
        self._outlet.flush()
        self._outlet.close()
        held = [self._admin]
        self._admin = None
        await asyncio.gather(asyncio.to_thread(held.clear), *self._ending)


class _Answer:
    """What one request brought, or nothing. `asks` is how many it frees of the bound; `requested`: Kafka was asked."""

    __slots__ = ("answered", "asks", "offsets", "requested", "waiting")

    def __init__(
        self, waiting: dict[int, list[int]], offsets: dict[int, int], *, answered: bool, asks: int, requested: bool = False
    ) -> None:
        self.waiting = waiting
        self.offsets = offsets
        self.answered = answered
        self.asks = asks
        self.requested = requested


class _Gather:
    """Waits for the partitions of one request; they are resolved together, on the driver's thread."""

    __slots__ = ("_left", "_outlet", "answer")

    def __init__(self, waiting: dict[int, list[int]], left: int, outlet: Outlet) -> None:
        self.answer = _Answer(waiting, {}, answered=False, asks=_count(waiting), requested=True)
        self._left = left
        self._outlet = outlet

    def callback(self, partition: int) -> Any:
        def done(future: Future[Any]) -> None:
            if future.exception() is None and (offset := future.result().offset) >= 0:
                # Without a leader's answer in time it is -1001, and no error (measured with a stopped broker, librdkafka 2.16).
                self.answer.offsets[partition] = offset
            self._left -= 1
            if not self._left:
                self.answer.answered = bool(self.answer.offsets)
                self._outlet.put([self.answer])

        return done


def _count(waiting: dict[int, list[int]]) -> int:
    return sum(map(len, waiting.values()))

"""Lanes: the records of one partition of a mapped topic on their way into the log. Everything here is on the loop.

Records that go to the same partition of the log, and so those of one channel, keep their order; those that go to different ones run beside
each other, so that a partition of the log whose budget is used up holds up nothing else. The mark is the offset before which everything is
durable, skipped or in the dead letter topic.
"""

from __future__ import annotations

import asyncio
import enum
import functools
import itertools
from collections import deque
from collections.abc import Callable
from typing import NamedTuple, Protocol

from core.events import Event, Overfull, Reported
from core.kafka.outlet import Deliver
from core.kafka.topics import StreamInfo
from relay.model.channel import partition_of
from relay.model.message import Kind

TURN = 100
"""Records a lane appends in one turn of the loop."""
RETRY_S = 0.05
"""Wait before an append that was refused is tried again."""

Done = Callable[[int | None], None]
"""Told the log offset, or None when the fate of the append is unknown."""


class Appender(Protocol):
    """What `LogAppends` needs of `LogProducer`. `refused` goes up within an `append` that is answered by `Overfull`."""

    refused: int

    def append(self, ticket: int, partition: int, key: bytes, value: bytes, kind: int, id: str) -> None: ...


class LogAppends:
    """Appends that are not the node's. Their tickets are negative; `sort` takes their answers out before the node sees them."""

    __slots__ = ("_open", "_producer", "_tickets", "ends", "log")

    def __init__(self, log: StreamInfo) -> None:
        self.log = log
        self.ends = [-1] * log.partitions
        """By partition: an offset at or after which whatever is appended from now on comes to lie; -1 while nobody has said."""
        self._producer: Appender | None = None
        self._tickets = itertools.count(-1, -1)
        self._open: dict[int, Done] = {}

    def sort(self, deliver: Deliver) -> Deliver:
        """`deliver` for `LogProducer`: passes on what is the node's."""

        def sorted_deliver(events: list[Event]) -> None:
            rest: list[Event] = []
            for event in events:
                if isinstance(event, Reported) and event.offset is not None:
                    self.ended(event.partition, event.offset + 1)
                if not isinstance(event, Reported | Overfull) or event.ticket >= 0:
                    rest.append(event)
                elif isinstance(event, Reported) and (done := self._open.pop(event.ticket, None)) is not None:
                    done(event.offset)
            if rest:
                deliver(rest)

        return sorted_deliver

    def use(self, producer: Appender) -> None:
        self._producer = producer

    def ended(self, partition: int, end: int) -> None:
        """The partition of the log reaches at least to `end`. Any thread: should two say it at once, the lower one may stay for a while,
        which makes a look at the log start earlier than it need."""
        self.ends[partition] = max(self.ends[partition], end)

    def append(self, partition: int, key: bytes, body: bytes, publish_id: str, done: Done) -> bool:
        """Hand one publish to Kafka. False: it was not taken, `done` will not be called, and later ones must wait for it."""
        producer = self._producer
        if producer is None:
            return False
        ticket, refused = next(self._tickets), producer.refused
        producer.append(ticket, partition, key, body, Kind.MESSAGE, publish_id)
        if producer.refused != refused:
            return False
        self._open[ticket] = done
        return True


class State(enum.Enum):
    """Of an entry."""

    WAITING = 0
    APPENDED = 1
    UNKNOWN = 2
    """Perhaps in the log: appended again, under the same id, for readers to leave out."""
    DEAD = 3
    """On its way to the dead letter topic."""
    DONE = 4


class Entry:
    """One record read. `append` is None for one that is not appended: skipped, already in the log, or `State.DEAD`."""

    __slots__ = ("append", "floor", "offset", "partition", "size", "state")

    def __init__(self, offset: int, append: tuple[bytes, bytes, str] | None, size: int, state: State | None = None) -> None:
        self.offset = offset
        self.append = append
        self.size = size
        self.state = state or (State.DONE if append is None else State.WAITING)
        self.partition = -1
        """Of the log."""
        self.floor = -1
        """Where that partition ended at the latest when the entry was first appended."""


class Position(NamedTuple):
    """What can be committed. `floors`: by partition of the log, where to look from for records at or after the mark."""

    mark: int
    floors: list[int]


class _Queue:
    """Entries of one lane for one partition of the log. When the fate of an append is unknown nothing further is appended until all are
    answered; then those of unknown fate go again, first and in order."""

    __slots__ = ("held", "open", "partition", "rewind", "sent", "waiting")

    def __init__(self, partition: int) -> None:
        self.partition = partition
        self.waiting: deque[Entry] = deque()
        self.sent: dict[int, Entry] = {}
        """By offset, in order: un-answered, or of unknown fate."""
        self.open = 0
        self.rewind = False
        self.held = False
        """The producer has refused the next one: it is tried again after a while."""


class Lane:
    """The records of one partition of a mapped topic while it is assigned, in offset order."""

    __slots__ = (
        "_appends", "_closed", "_due", "_loop", "_may_append", "_open", "_queues", "_run", "_timer",
        "final", "finished_bytes", "finished_records", "mark", "position", "taken_bytes", "taken_records",
    )  # fmt: skip

    def __init__(
        self, loop: asyncio.AbstractEventLoop, appends: LogAppends, mark: int, may_append: Callable[[], bool] = lambda: True
    ) -> None:
        """`may_append`: whether the partition is surely still ours."""
        self._loop = loop
        self._appends = appends
        self._may_append = may_append
        self._run: deque[Entry] = deque()
        """Everything at or after the mark."""
        self._queues: dict[int, _Queue] = {}
        self._due: dict[int, _Queue] = {}
        """Those with something to append."""
        self._open = 0
        self._closed = False
        self._timer: asyncio.TimerHandle | asyncio.Handle | None = None
        self.mark = mark
        """Everything before this offset is durable in the log, or needs not be. Readable from any thread, as all that follows."""
        self.position: Position | None = None
        """At the last `snapshot`."""
        self.final = False
        """The lane is closed, no append is un-answered, and `position` says so."""
        self.taken_records = self.taken_bytes = 0
        """Handed over, ever. Written by the thread only, so that what the loop has not seen yet counts against the bounds too."""
        self.finished_records = self.finished_bytes = 0
        """Behind the mark, ever. Written by the loop only."""

    def add(self, entries: list[Entry]) -> None:
        if self._closed:
            return
        for entry in entries:
            self._run.append(entry)
            if entry.append is not None:
                entry.partition = partition_of(entry.append[0], self._appends.log.partitions)
                queue = self._queues.get(entry.partition)
                if queue is None:
                    queue = self._queues[entry.partition] = _Queue(entry.partition)
                queue.waiting.append(entry)
                if not queue.rewind and not queue.held:
                    self._due[entry.partition] = queue
        self._advance()
        if self._timer is None:
            self._append()

    def buried(self, entry: Entry) -> None:
        """The dead letter topic has it."""
        entry.state = State.DONE
        self._advance()
        if self.final:
            self.snapshot()

    def snapshot(self) -> None:
        floors = [max(0, end) for end in self._appends.ends]
        for entry in self._run:
            if entry.floor >= 0:
                floors[entry.partition] = min(floors[entry.partition], entry.floor)
        self.position = Position(self.mark, floors)

    def close(self) -> None:
        """The partition is another member's now, or soon: append nothing more."""
        self._closed = True
        self._due.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._finish()

    # --- appending -------------------------------------------------------------------------------------------------------------------

    def _append(self) -> None:
        self._timer = None
        if not self._due:
            return
        if not self._may_append():
            self._timer = self._loop.call_later(RETRY_S, self._append)
            return
        left = TURN
        while self._due and left:
            partition, queue = next(iter(self._due.items()))
            left -= self._append_from(queue, left)
            self._due.pop(partition, None)
            if queue.waiting and not queue.held and not queue.rewind:
                self._due[partition] = queue  # at the end: the others have their turn first
        self._advance()
        if self._due and self._timer is None:
            self._timer = self._loop.call_soon(self._append)

    def _append_from(self, queue: _Queue, most: int) -> int:
        """How many were appended."""
        count = 0
        while queue.waiting and count < most:
            entry = queue.waiting[0]
            assert entry.append is not None
            if entry.floor < 0:
                entry.floor = max(0, self._appends.ends[entry.partition])
            if not self._appends.append(queue.partition, *entry.append, functools.partial(self._answered, queue, entry)):
                self._hold(queue)
                break
            entry.state = State.APPENDED
            queue.waiting.popleft()
            queue.sent[entry.offset] = entry
            queue.open += 1
            self._open += 1
            count += 1
        return count

    def _hold(self, queue: _Queue) -> None:
        queue.held = True
        self._loop.call_later(RETRY_S, self._release, queue)

    def _release(self, queue: _Queue) -> None:
        queue.held = False
        if queue.waiting and not queue.rewind and not self._closed:
            self._due[queue.partition] = queue
            if self._timer is None:
                self._append()

    def _answered(self, queue: _Queue, entry: Entry, offset: int | None) -> None:
        self._open -= 1
        queue.open -= 1
        if offset is None:
            entry.state = State.UNKNOWN
            queue.rewind = True
            self._due.pop(queue.partition, None)
        else:
            entry.state = State.DONE
            del queue.sent[entry.offset]
            self._advance()
        if queue.rewind and not queue.open:
            again, queue.sent = queue.sent, {}
            for other in again.values():
                other.state = State.WAITING
            queue.waiting.extendleft(reversed(again.values()))
            queue.rewind = False
            if not self._closed and not queue.held:
                self._hold(queue)
        self._finish()

    def _advance(self) -> None:
        while self._run and self._run[0].state is State.DONE:
            entry = self._run.popleft()
            self.mark = entry.offset + 1
            self.finished_records += 1
            self.finished_bytes += entry.size

    def _finish(self) -> None:
        if self._closed and not self._open:
            self.snapshot()
            self.final = True

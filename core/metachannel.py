"""`[meta]channel.lifecycle`: what happened to the channels of an app, as messages of a channel that clients can read.
Source: Ably protocol docs, 10.1.

    LIFECYCLE record read ──by every core──▶ to be shown ──the owner appends──▶ on its way ──read back──▶ shown
                                                  ▲                                  │
                                                  └────────not read in time──────────┘

The messages are records of the log like any others, in the partition of the metachannel, so that whatever holds for channels holds for it:
order, replay, history, rewind. Their ids follow from the record that they tell of. Every core keeps in mind what is not shown yet, and
whoever owns the partition of the event shows it: if its owner dies in between the next one does, and if both do the duplicate verdict
leaves one.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec

from core.lifecycle import OPENED, LifecycleBody
from core.log import LogRecord
from relay.model.limits import CoreLimits
from relay.model.message import Message, RecordBody
from relay.model.occupancy import METRICS, details
from relay.model.serials import Serial

PREFIX = "l:"
"""Of the publish ids of these messages; the rest is the serial of the record that they tell of."""
TIMELY_MS = 120_000
"""An event that was not shown in this time is not shown any more: well within the window of the duplicate verdict."""
AGAIN_S = 10.0
"""How long the owner waits to read back what it appended, before it appends it once more."""

_encode = msgspec.msgpack.Encoder().encode
_encode_json = msgspec.json.Encoder().encode


class _Event(NamedTuple):
    partition: int
    key: bytes
    body: LifecycleBody
    at_ms: int
    """Broker time."""


class Metachannel:
    """Of one core. `append(app, value, id)` hands a message to the log, and is False if the app has no such channel here. `counts(key)` is
    how many there are on a channel now, in the order of `METRICS`, for events that do not say."""

    __slots__ = ("_append", "_asked", "_counters", "_counts", "_events", "_limits", "_owned", "_queue")

    def __init__(
        self,
        limits: CoreLimits,
        counters: Counter[str],
        *,
        append: Callable[[str, bytes, str], bool],
        counts: Callable[[bytes], Sequence[int]],
    ) -> None:
        self._limits = limits
        self._counters = counters
        self._append = append
        self._counts = counts
        self._owned: frozenset[int] = frozenset()
        self._events: OrderedDict[str, _Event] = OrderedDict()
        """Not shown yet, by publish id, the oldest first."""
        self._queue: OrderedDict[str, None] = OrderedDict()
        """Of these, those that it is up to this core to show."""
        self._asked: OrderedDict[str, float] = OrderedDict()
        """Of these, those that were appended and not read back: when (monotonic seconds)."""

    def __len__(self) -> int:
        return len(self._events)

    def happened(self, record: LogRecord, body: LifecycleBody, now_ms: int) -> None:
        """An event that counts was read."""
        if record.timestamp < now_ms - TIMELY_MS:
            return
        publish_id = PREFIX + Serial(record.stream, record.partition, record.offset).text
        self._events[publish_id] = _Event(record.partition, record.key, body, record.timestamp)
        if record.partition in self._owned:
            self._queue[publish_id] = None
        if len(self._events) > self._limits.lifecycle_unshown:
            self._counters["lifecycle.unshown"] += 1
            self._forget(next(iter(self._events)))

    def shown(self, publish_id: str) -> None:
        """A message was read."""
        if publish_id in self._events:
            self._forget(publish_id)

    def _forget(self, publish_id: str) -> None:
        del self._events[publish_id]
        self._queue.pop(publish_id, None)
        self._asked.pop(publish_id, None)

    def own(self, partitions: frozenset[int]) -> None:
        """From now on this core owns these, and no others."""
        self._owned = partitions
        self._queue.clear()
        for publish_id, event in self._events.items():
            if event.partition not in partitions:
                self._asked.pop(publish_id, None)
            elif publish_id not in self._asked:
                self._queue[publish_id] = None

    @property
    def due(self) -> bool:
        """There is something to append."""
        return bool(self._queue) and len(self._asked) < self._limits.lifecycle_under_way

    def turn(self, now: float) -> None:
        """Append what may be appended now. The events of one channel are neighbours of one partition, and so stay in order."""
        while self.due:
            publish_id, _ = self._queue.popitem(last=False)
            self._show(publish_id, now)

    def _show(self, publish_id: str, now: float) -> None:
        _, key, body, _ = self._events[publish_id]
        app, _, channel = key.decode(errors="replace").partition(":")
        counts = body.counts if len(body.counts) == len(METRICS) else self._counts(key)
        about = details(channel, counts, active=body.name == OPENED) | {"name": channel}
        message = Message(name=body.name, data=_encode_json(about).decode(), encoding="json")
        value = _encode(RecordBody(id=publish_id.removeprefix(PREFIX), timestamp=body.timestamp, messages=[message]))
        if self._append(app, value, publish_id):
            self._asked[publish_id] = now
        else:
            self._forget(publish_id)

    def sweep(self, now: float, now_ms: int) -> None:
        """Once a second or so."""
        late = [publish_id for publish_id, at in self._asked.items() if at <= now - AGAIN_S]
        for publish_id in reversed(late):
            del self._asked[publish_id]
            self._queue[publish_id] = None
            self._queue.move_to_end(publish_id, last=False)
        for publish_id in [publish_id for publish_id, event in self._events.items() if event.at_ms < now_ms - TIMELY_MS]:
            self._counters["lifecycle.unshown"] += 1
            self._forget(publish_id)

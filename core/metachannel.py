"""Metachannels: what happened in an app, as messages of channels that clients can read. Source: Ably protocol docs, 10.1.

    [meta]channel.lifecycle       channels that open and close
    [meta]connection.lifecycle    connections that open and close
    [meta]log                     what went wrong, and no client was told
    [meta]stats:minute            what was counted in the minute before

    event read ──by every core──▶ to be shown ──the owner appends──▶ on its way ──read back──▶ shown
                                       ▲                                  │
                                       └────────not read in time──────────┘

The messages are records of the log like any others, in the partition of the metachannel, so that whatever holds for channels holds for it:
order, replay, history, rewind. Their ids follow from the event that they tell of. Every core keeps in mind what is not shown yet, and
whoever owns the partition of the event shows it: if its owner dies in between the next one does, and if both do the duplicate verdict
leaves one. What a core alone has noticed (for the log) that core shows.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import msgspec

from core.connections import Change, ConnectionRecord, State
from core.lifecycle import OPENED, LifecycleBody
from core.log import LogRecord
from relay.model.channel import CHANNEL_LIFECYCLE, CONNECTION_LIFECYCLE, META_LOG, META_STATS
from relay.model.limits import CoreLimits
from relay.model.message import Message, RecordBody
from relay.model.occupancy import METRICS, details
from relay.model.serials import Serial

PREFIX = "l:"
"""Of the publish ids of messages about channels; the rest is the serial of the record that they tell of."""
CONNECTION_PREFIX = "n:"
LOG_PREFIX = "g:"
STATS_PREFIX = "u:"
UPDATE = "update"
CONNECTION_OPENED = "connection.opened"
CONNECTION_CLOSED = "connection.closed"
REGION_ACTIVE = "channel.region.active"
REGION_INACTIVE = "channel.region.inactive"
MESSAGES = frozenset({PREFIX, CONNECTION_PREFIX, LOG_PREFIX, STATS_PREFIX})
"""How the publish ids of all messages here begin, and no others."""
TIMELY_MS = 120_000
"""An event that was not shown in this time is not shown any more: well within the window of the duplicate verdict."""
AGAIN_S = 10.0
"""How long a core waits to read back what it appended, before it appends it once more."""
_OURS = -1
"""In place of a partition: what this core has to show whatever it owns."""
_EARLY = 10_000
"""Messages remembered that were read before their events, the newest. Beyond them an event is taken for not shown, and counted."""

_encode = msgspec.msgpack.Encoder().encode
_encode_json = msgspec.json.Encoder().encode


class _Event(NamedTuple):
    partition: int
    """Whose owner shows it."""
    app: str
    channel: str
    """The metachannel."""
    timestamp: int
    """Of the messages, milliseconds."""
    messages: Callable[[], list[Message]]
    at_ms: int
    """Broker time."""


class Metachannel:
    """All of them, of one core. `append(app, channel, value, id)` hands a message to the log, and is False if there is no such app here.
    `counts(key)` is how many there are on a channel now, in the order of `METRICS`, for events that do not say. `partition(app, channel)`:
    of its records. `region`: that of this core."""

    __slots__ = ("_append", "_asked", "_counters", "_counts", "_early", "_events", "_limits", "_owned", "_partition", "_queue", "_region")

    def __init__(
        self,
        limits: CoreLimits,
        counters: Counter[str],
        *,
        append: Callable[[str, str, bytes, str], bool],
        counts: Callable[[bytes], Sequence[int]],
        partition: Callable[[str, str], int],
        region: str,
    ) -> None:
        self._limits = limits
        self._counters = counters
        self._append = append
        self._counts = counts
        self._partition = partition
        self._region = region
        self._owned: frozenset[int] = frozenset({_OURS})
        self._events: OrderedDict[str, _Event] = OrderedDict()
        """Not shown yet, by publish id, the oldest first."""
        self._queue: OrderedDict[str, None] = OrderedDict()
        """Of these, those that it is up to this core to show."""
        self._asked: OrderedDict[str, float] = OrderedDict()
        """Of these, those that were appended and not read back: when (monotonic seconds)."""
        self._early: OrderedDict[str, None] = OrderedDict()
        """Publish ids of messages that were read before their events, which are in another partition, or topic."""

    def __len__(self) -> int:
        return len(self._events)

    # --- what happened -----------------------------------------------------------------------------------------------------------------

    def happened(self, record: LogRecord, body: LifecycleBody, now_ms: int) -> None:
        """A channel has opened or closed: its event was read, and counts."""
        app, _, channel = record.key.decode(errors="replace").partition(":")
        about = partial(self._about_channel, record.key, channel, body)
        publish_id = PREFIX + Serial(record.stream, record.partition, record.offset).text
        self._take(publish_id, _Event(record.partition, app, CHANNEL_LIFECYCLE, body.timestamp, about, record.timestamp), now_ms)

    def _about_channel(self, key: bytes, channel: str, body: LifecycleBody) -> list[Message]:
        """There is one region of cores, so that a channel opens and becomes active there at once. It is inactive before it is closed."""
        counts = body.counts if len(body.counts) == len(METRICS) else self._counts(key)
        opened = body.name == OPENED
        about = details(channel, counts, active=opened) | {"name": channel}
        region = about | {"region": self._region, "isGlobalMaster": True}
        found = [_message(body.name, about), _message(REGION_ACTIVE if opened else REGION_INACTIVE, region)]
        return found if opened else found[::-1]

    def connection(self, change: Change, at_ms: int, now_ms: int) -> None:
        """The record of a connection was read, written at `at_ms` by broker time. One that is gone is closed when it is forgotten: until
        then it may be resumed. The records of former connections say nothing new."""
        before, after = change.before, change.after
        record = before if after is None else after
        if record is None:
            return
        if before is None and after is not None and after.opened_at:
            self._connection(change.connection, CONNECTION_OPENED, record, after.opened_at, now_ms)
        over = after is None or after.state is State.CLOSED
        if over and (before is None or before.state is not State.CLOSED):
            self._connection(change.connection, CONNECTION_CLOSED, record, at_ms, now_ms)

    def _connection(self, connection: str, name: str, record: ConnectionRecord, at_ms: int, now_ms: int) -> None:
        if at_ms < now_ms - TIMELY_MS:
            return  # as of most that a core reads when it starts
        about: dict[str, Any] = {"connectionId": connection}
        if record.client_id is not None:
            about["clientId"] = record.client_id
        about |= {"keyName": record.key_name, "transport": "web_socket"}
        if name == CONNECTION_CLOSED:
            about["reason"] = "closed" if record.state is State.CLOSED else "expired"
        publish_id = f"{CONNECTION_PREFIX}{connection}:{name.rpartition('.')[2]}"
        partition = self._partition(record.app, CONNECTION_LIFECYCLE)
        messages = [_message(name, about)]
        self._take(publish_id, _Event(partition, record.app, CONNECTION_LIFECYCLE, at_ms, lambda: messages, at_ms), now_ms)

    def log(self, app: str, number: str, name: str, about: dict[str, Any], now_ms: int) -> None:
        """Something that operators should know. Of several under one `number`, by whichever core, one is shown."""
        messages = [_message(name, about)]
        self._take(LOG_PREFIX + number, _Event(_OURS, app, META_LOG, now_ms, lambda: messages, now_ms), now_ms)

    def statistics(self, app: str, publish_id: str, at_ms: int, about: Callable[[], dict[str, Any]], now_ms: int) -> None:
        """A minute (`minute_id`) is over, and `about` says what was counted in it."""
        event = _Event(self._partition(app, META_STATS), app, META_STATS, now_ms, lambda: [_message(UPDATE, about())], at_ms)
        self._take(publish_id, event, now_ms)

    def _take(self, publish_id: str, event: _Event, now_ms: int) -> None:
        if publish_id in self._early:
            del self._early[publish_id]
            return
        if event.at_ms < now_ms - TIMELY_MS or publish_id in self._events:
            return
        self._events[publish_id] = event
        if event.partition in self._owned:
            self._queue[publish_id] = None
        if len(self._events) > self._limits.lifecycle_unshown:
            self._counters["lifecycle.unshown"] += 1
            self._forget(next(iter(self._events)))

    # --- what is shown -----------------------------------------------------------------------------------------------------------------

    def shown(self, publish_id: str) -> None:
        """A message was read."""
        if publish_id in self._events:
            self._forget(publish_id)
        else:
            self._early[publish_id] = None
            if len(self._early) > _EARLY:
                self._early.popitem(last=False)

    def _forget(self, publish_id: str) -> None:
        del self._events[publish_id]
        self._queue.pop(publish_id, None)
        self._asked.pop(publish_id, None)

    def own(self, partitions: frozenset[int]) -> None:
        """From now on this core owns these, and no others."""
        self._owned = partitions | {_OURS}
        self._queue.clear()
        for publish_id, event in self._events.items():
            if event.partition not in self._owned:
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
        event = self._events[publish_id]
        body = RecordBody(id=publish_id.partition(":")[2], timestamp=event.timestamp, messages=event.messages())
        if self._append(event.app, event.channel, _encode(body), publish_id):
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


def minute_id(app: str, interval: str) -> str:
    """The publish id of the statistics of a minute."""
    return f"{STATS_PREFIX}{app}:{interval}"


def _message(name: str, about: dict[str, Any]) -> Message:
    return Message(name=name, data=_encode_json(about).decode(), encoding="json")

"""When channels open and close: records of the log, and what they add up to. Source: Ably protocol docs, 10.1.

    closed ──an attachment anywhere, or a publish──▶ `channel.opened` n+1
    open ──a minute without attachment and publish──▶ `channel.closed` n

The owner of a partition appends the records; whoever reads them, the owner included, changes its state then and not before. Their ids
follow from what they say (`opened:room:3`), so that two cores that both believe to be the owner, or one that appends again because it has
not heard what became of the first, make one event: the duplicate verdict leaves out the others, and a record that does not fit the state
that it finds counts for nothing. They are not shown to clients as events of the channel, but by `core.metachannel`.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable
from typing import Protocol

import msgspec

from core import state
from core.log import LogRecord
from core.state import LifecycleState
from relay.model.channel import is_qualified
from relay.model.limits import CoreLimits
from relay.runtime.wheel import Wheel

OPENED = "channel.opened"
CLOSED = "channel.closed"
REMEMBERED_MS = 600_000
"""How long the number of a closed channel is kept, in broker time: well beyond the window of the duplicate verdict, which would take the
first event of a channel that starts counting anew for a repetition."""
AGAIN_S = 10.0
"""How long the owner waits to read back what it appended, before it appends it once more."""

_QUERIED = 10_000


class LifecycleBody(msgspec.Struct, rename="camel"):
    """The value of a LIFECYCLE record. `n`: the how-manieth opening of the channel it is, or the end of which. Milliseconds. `counts`: the
    channel's occupancy then, as its owner saw it, in the order of `relay.model.occupancy.METRICS`; empty if it does not say."""

    id: str
    timestamp: int
    name: str
    n: int
    counts: tuple[int, ...] = ()


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(LifecycleBody).decode


def decode_body(value: bytes) -> LifecycleBody | None:
    """None for what no core of ours has written."""
    try:
        return _decode(value)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def event_id(name: str, channel: str, number: int) -> str:
    """The publish id of an event: `opened:room:3`."""
    return f"{name.partition('.')[2]}:{channel}:{number}"


class PartitionLifecycle:
    """The fold over one partition: the same on every core.

    `journal`, if the caller sets one, takes the state records that bring `tidegate.state` up to date: key → value, None for a tombstone.
    """

    __slots__ = ("_closed", "_most", "channels", "journal", "unreadable")

    def __init__(self, most_closed: int = CoreLimits().lifecycle_closed) -> None:
        self._most = most_closed
        self.channels: dict[bytes, LifecycleState] = {}
        """By log key; a channel that is not in it has never been open, or not for a long time."""
        self.journal: dict[bytes, bytes | None] | None = None
        self.unreadable = 0
        self._closed: OrderedDict[bytes, None] = OrderedDict()
        """Closed channels, the one closed longest ago first."""

    def is_open(self, key: bytes) -> bool:
        known = self.channels.get(key)
        return known is not None and known.open

    def next_number(self, key: bytes) -> int:
        """Which opening the next one is."""
        known = self.channels.get(key)
        return 1 if known is None else known.number + 1

    def apply(self, record: LogRecord) -> LifecycleBody | None:
        """The next LIFECYCLE record of the partition, duplicates left out. What happened, None if it counts for nothing."""
        body = decode_body(record.value)
        if body is None or body.n < 1:
            self.unreadable += 1
            return None
        known = self.channels.get(record.key)
        is_open = known is not None and known.open
        if body.name == OPENED and not is_open:
            self._put(record.key, LifecycleState(number=body.n, open=True, at=record.timestamp))
        elif body.name == CLOSED and (known is None or (known.open and known.number == body.n)):
            # Of an unknown channel: it was opened before this view began.
            self._put(record.key, LifecycleState(number=body.n, open=False, at=record.timestamp))
        else:
            return None
        return body

    def includes(self, record: LogRecord) -> LifecycleBody | None:
        """Its body, if the state of the channel is what this record has made of it."""
        known, body = self.channels.get(record.key), decode_body(record.value)
        if known is None or body is None:
            return None
        made = LifecycleState(number=body.n, open=body.name == OPENED, at=record.timestamp)
        return body if known == made and body.name in (OPENED, CLOSED) else None

    def forget(self, before_ms: int) -> None:
        """Channels closed before this broker time start counting anew."""
        while self._closed and self.channels[next(iter(self._closed))].at < before_ms:
            self._forget_oldest()

    def _forget_oldest(self) -> None:
        key, _ = self._closed.popitem(last=False)
        del self.channels[key]
        self._note(key, None)

    def _put(self, key: bytes, after: LifecycleState) -> None:
        self._take(key, after)
        self._note(key, after)
        if len(self._closed) > self._most:
            self._forget_oldest()

    def _take(self, key: bytes, after: LifecycleState) -> None:
        self.channels[key] = after
        if after.open:
            self._closed.pop(key, None)
        else:
            self._closed[key] = None

    def _note(self, key: bytes, value: LifecycleState | None) -> None:
        if self.journal is not None:
            self.journal[state.lifecycle_key(key)] = None if value is None else state.encode(value)

    def restore(self, records: dict[bytes, bytes]) -> None:
        """Take over the state of the partition at its checkpoint (`lifecycle` records; others are left alone). The records before it may be
        applied again, from any of them on: once all have been, the state is the same."""
        found: list[tuple[bytes, LifecycleState]] = []
        for key, value in records.items():
            match state.decode(key, value):
                case ([_, bytes(log_key)], LifecycleState() as known):
                    found.append((log_key, known))
        for log_key, known in sorted(found, key=lambda each: each[1].at):
            self._take(log_key, known)


class Opens(Protocol):
    def __call__(self, key: bytes, by: int, *, ours: bool) -> None: ...


class Lifecycle:
    """The channels of all partitions that a core serves, and what it appends for those that it owns.

    `append(partition, key, value, id)` hands a record to the log; `connections(key)` says how many attachments a channel has, over all
    edges, and `counts(key)` its whole occupancy. `opens(key, by, ours=…)` is told of each channel that opens (+1) or
    closes (-1), and whether its partition is this core's. All are of the caller.
    """

    def __init__(
        self,
        limits: CoreLimits,
        counters: Counter[str],
        *,
        append: Callable[[int, bytes, bytes, str], None],
        connections: Callable[[bytes], int],
        counts: Callable[[bytes], tuple[int, ...]] = lambda _key: (),
        opens: Opens = lambda _key, _by, *, ours: None,
    ) -> None:
        self._opens = opens
        self._limits = limits
        self._counters = counters
        self._append = append
        self._connections = connections
        self._counts = counts
        self.views: dict[int, PartitionLifecycle] = {}
        self.owned: frozenset[int] = frozenset()
        self._busy: dict[bytes, float] = {}
        """Channels of owned partitions that are open, or about to be: when they were last published to, as far as this core has owned
        them (monotonic seconds)."""
        self._place: dict[bytes, int] = {}
        """The partition of each of these."""
        self._asked: dict[bytes, tuple[str, int]] = {}
        """Events appended and not read back: name and number."""
        self._queried: OrderedDict[bytes, float] = OrderedDict()
        """Channels of others that were opened here for a status, until when to wait for that to be read."""
        self._wheel: Wheel[bytes] = Wheel(1.0)

    def __len__(self) -> int:
        return sum(len(view.channels) for view in self.views.values())

    # --- the log ---------------------------------------------------------------------------------------------------------------------

    def restore(self, partition: int, records: dict[bytes, bytes]) -> None:
        view = self._view(partition)
        view.restore(records)
        for key, known in view.channels.items():
            if known.open:
                self._opens(key, +1, ours=False)

    def read(self, record: LogRecord, now: float, now_ms: int) -> LifecycleBody | None:
        """A LIFECYCLE record, duplicates left out. What happened, None if it counts for nothing. The newest event of a channel happened
        also if the state that was restored includes it."""
        view = self._view(record.partition)
        key = record.key
        was_open = view.is_open(key)
        body = view.apply(record) or view.includes(record)
        if (is_open := view.is_open(key)) != was_open:
            self._opens(key, 1 if is_open else -1, ours=record.partition in self.owned)
        if record.partition in self.owned:
            self._asked.pop(key, None)
            if view.is_open(key):
                self._busy[key] = max(now, self._busy.get(key, now))
                self._place[key] = record.partition
                self._wheel.schedule(key, now + self._limits.channel_close_s)
            else:
                self._drop(key)
                if self._connections(key) > 0:  # came while the end was on its way
                    self.active(record.partition, key, now, now_ms)
        return body

    def published(self, partition: int, key: bytes, now: float, now_ms: int) -> None:
        """A message or a presence event of the channel was read. On the hot path: one look-up for a channel that is open."""
        if key in self._busy:
            self._busy[key] = now
        elif partition in self.owned:
            self._open(partition, key, now, now_ms)

    def active(self, partition: int, key: bytes, now: float, now_ms: int) -> None:
        """The number of attachments of a channel may have changed."""
        if partition not in self.owned:
            return
        if self._connections(key) > 0:
            if key not in self._busy:
                self._open(partition, key, now, now_ms)
        elif key in self._busy and key not in self._asked:
            self._wheel.schedule(key, now + self._limits.channel_close_s)

    def queried(self, partition: int, key: bytes, now: float, now_ms: int) -> None:
        """Somebody asks how many there are: to ask is to use. Where another core owns the partition, it reads what is appended here, under
        the id that it would have given it; of a channel that is open it does not hear."""
        if partition in self.owned:
            self.published(partition, key, now, now_ms)
        elif not self._view(partition).is_open(key) and self._queried.get(key, 0.0) <= now:
            self._queried[key] = now + AGAIN_S
            self._queried.move_to_end(key)
            if len(self._queried) > _QUERIED:
                self._queried.popitem(last=False)
            self._append_event(partition, key, OPENED, self._view(partition).next_number(key), now_ms)

    # --- the owner -------------------------------------------------------------------------------------------------------------------

    def own(self, partitions: frozenset[int], occupied: Iterable[tuple[int, bytes]], now: float, now_ms: int) -> None:
        """From now on this core owns these, and no others. `occupied`: partition and key of every channel with attachments. What was
        published lately it cannot know: no channel closes before its minute has passed anew."""
        gained = partitions - self.owned
        self.owned = partitions
        for key in [key for key, partition in self._place.items() if partition not in partitions]:
            self._drop(key)
        for partition in gained:
            for key, known in self._view(partition).channels.items():
                if known.open:
                    self._busy[key] = now
                    self._place[key] = partition
                    self._wheel.schedule(key, now + self._limits.channel_close_s)
        if gained:
            for partition, key in occupied:
                if partition in gained and key not in self._busy:
                    self._open(partition, key, now, now_ms)

    def sweep(self, now: float, now_ms: int) -> None:
        """Once a second or so."""
        for key in self._wheel.due(now):
            self._look(key, now, now_ms)
        for view in self.views.values():
            view.forget(now_ms - REMEMBERED_MS)

    def _look(self, key: bytes, now: float, now_ms: int) -> None:
        """The channel has been quiet for its minute, or what was appended for it has not been read back."""
        partition = self._place[key]
        asked = self._asked.get(key)
        if asked is not None:
            self._say(partition, key, *asked, now, now_ms)
            return
        idle_at = self._busy[key] + self._limits.channel_close_s
        if idle_at > now:
            self._wheel.schedule(key, idle_at)
        elif self._connections(key) == 0:
            known = self._view(partition).channels.get(key)
            if known is None:
                self._drop(key)
            else:
                self._say(partition, key, CLOSED, known.number, now, now_ms)

    def _open(self, partition: int, key: bytes, now: float, now_ms: int) -> None:
        if is_qualified(key):
            return  # or what is said of channels would have a lifecycle of its own, and say that, too
        view = self._view(partition)
        if not view.is_open(key):
            if len(self._busy) >= self._limits.lifecycle_channels:
                self._counters["lifecycle.full"] += 1
                return
            self._say(partition, key, OPENED, view.next_number(key), now, now_ms)
        self._busy[key] = now
        self._place[key] = partition

    def _say(self, partition: int, key: bytes, name: str, number: int, now: float, now_ms: int) -> None:
        self._asked[key] = (name, number)
        self._wheel.schedule(key, now + AGAIN_S)
        self._append_event(partition, key, name, number, now_ms)

    def _append_event(self, partition: int, key: bytes, name: str, number: int, now_ms: int) -> None:
        channel = key.partition(b":")[2].decode(errors="replace")
        made = event_id(name, channel, number)
        body = LifecycleBody(id=made, timestamp=now_ms, name=name, n=number, counts=self._counts(key))
        self._append(partition, key, _encode(body), made)

    def _drop(self, key: bytes) -> None:
        self._busy.pop(key, None)
        self._place.pop(key, None)
        self._asked.pop(key, None)
        self._wheel.cancel(key)

    def _view(self, partition: int) -> PartitionLifecycle:
        view = self.views.get(partition)
        if view is None:
            view = self.views[partition] = PartitionLifecycle(self._limits.lifecycle_closed)
        return view

"""Occupancy as events of the log, for rules: how many there are on a channel, whenever that has changed. Source: Ably protocol docs, 10.2.

    as in the log ──the sums change──▶ to be said ──a second after the last one──▶ appended n+1 ──read back──▶ as in the log, or to be said

The sums are every core's own (`core.occupancy`), and the owner of the channel's partition says them, for the apps that have a rule for it.
A category that becomes zero, or ceases to be, is said at once. As with the lifecycle of channels the records are numbered, their ids follow
from the number, and whoever reads them, the owner included, takes them for true then and not before: two cores that both believe to be the
owner make one event, and a new owner says what the former has not. What was said last is kept in the state until it is all zeros.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable

import msgspec

from core import state
from core.log import LogRecord
from core.state import OccupancyState
from relay.model.channel import is_qualified
from relay.model.limits import CoreLimits
from relay.model.occupancy import METRICS
from relay.runtime.wheel import Wheel

REMEMBERED_MS = 600_000
"""How long the number of an empty channel is kept, in broker time: well beyond the window of the duplicate verdict."""
AGAIN_S = 10.0
"""How long the owner waits to read back what it appended, before it appends it once more."""
SETTLE_S = 2.0
"""How long a core waits before it speaks for a partition that it has gained: what it knows of other edges may be behind at its start."""
_EMPTY = (0,) * len(METRICS)
_MOST = (1 << 31) - 1


class OccupancyBody(msgspec.Struct, rename="camel"):
    """The value of an OCCUPANCY record. `n`: the how-manieth of the channel it is. `counts` in the order of `METRICS`. Milliseconds."""

    id: str
    timestamp: int
    n: int
    counts: tuple[int, ...]


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(OccupancyBody).decode


def decode_body(value: bytes) -> OccupancyBody | None:
    """None for what no core of ours has written."""
    try:
        body = _decode(value)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    if body.n < 1 or len(body.counts) != len(METRICS) or not all(0 <= count <= _MOST for count in body.counts):
        return None
    return body


class PartitionOccupancy:
    """The fold over one partition: the same on every core.

    `journal`, if the caller sets one, takes the state records that bring `tidegate.state` up to date: key → value, None for a tombstone.
    """

    __slots__ = ("_empty", "_most", "channels", "journal", "unreadable")

    def __init__(self, most_empty: int = CoreLimits().lifecycle_closed) -> None:
        self._most = most_empty
        self.channels: dict[bytes, OccupancyState] = {}
        """By log key."""
        self.journal: dict[bytes, bytes | None] | None = None
        self.unreadable = 0
        self._empty: OrderedDict[bytes, None] = OrderedDict()
        """Channels of which zeros were said, longest ago first."""

    def apply(self, record: LogRecord) -> OccupancyBody | None:
        """The next OCCUPANCY record of the partition, duplicates left out. What it says, None if it counts for nothing."""
        body = decode_body(record.value)
        if body is None:
            self.unreadable += 1
            return None
        known = self.channels.get(record.key)
        if known is not None and body.n <= known.number:
            return None
        self._put(record.key, OccupancyState(number=body.n, counts=body.counts, at=record.timestamp))
        return body

    def said(self, key: bytes) -> tuple[int, tuple[int, ...]]:
        """Number and counts of the last event of a channel."""
        known = self.channels.get(key)
        return (0, _EMPTY) if known is None else (known.number, known.counts)

    def forget(self, before_ms: int) -> None:
        """Channels of which zeros were said before this broker time start counting anew."""
        while self._empty and self.channels[next(iter(self._empty))].at < before_ms:
            self._forget_oldest()

    def _forget_oldest(self) -> None:
        key, _ = self._empty.popitem(last=False)
        del self.channels[key]
        self._note(key, None)

    def _put(self, key: bytes, after: OccupancyState) -> None:
        self._take(key, after)
        self._note(key, after)
        if len(self._empty) > self._most:
            self._forget_oldest()

    def _take(self, key: bytes, after: OccupancyState) -> None:
        self.channels[key] = after
        self._empty.pop(key, None)
        if not any(after.counts):
            self._empty[key] = None

    def _note(self, key: bytes, value: OccupancyState | None) -> None:
        if self.journal is not None:
            self.journal[state.occupancy_key(key)] = None if value is None else state.encode(value)

    def restore(self, records: dict[bytes, bytes]) -> None:
        """Take over the state of the partition at its checkpoint (`occupancy` records; others are left alone). Records before it may be
        applied again."""
        found: list[tuple[bytes, OccupancyState]] = []
        for key, value in records.items():
            match state.decode(key, value):
                case ([_, bytes(log_key)], OccupancyState() as known) if len(known.counts) == len(METRICS):
                    found.append((log_key, known))
        for log_key, known in sorted(found, key=lambda each: each[1].at):
            self._take(log_key, known)


class OccupancyLog:
    """What a core appends for the partitions that it owns. `append(partition, key, value, id)` hands a record to the log; `totals(key)` are
    the counts of a channel now, as this core adds them up."""

    def __init__(
        self,
        limits: CoreLimits,
        counters: Counter[str],
        *,
        append: Callable[[int, bytes, bytes, str], None],
        totals: Callable[[bytes], tuple[int, ...]],
    ) -> None:
        self._limits = limits
        self._counters = counters
        self._append = append
        self._totals = totals
        self._views: dict[int, PartitionOccupancy] = {}
        self._owned: frozenset[int] = frozenset()
        self._apps: frozenset[bytes] = frozenset()
        self._place: dict[bytes, int] = {}
        """The partition of each channel that is looked after: something is to be said, was said lately, or is on its way."""
        self._said_at: dict[bytes, float] = {}
        """When (monotonic seconds), within the last interval."""
        self._asked: dict[bytes, tuple[int, float]] = {}
        """Appended and not read back: number, and until when to wait for it."""
        self._wheel: Wheel[bytes] = Wheel(0.25)

    def __len__(self) -> int:
        return len(self._place)

    @property
    def wanted(self) -> bool:
        """Whether anybody wants to know."""
        return bool(self._apps)

    def want(self, apps: Iterable[str], occupied: Iterable[tuple[int, bytes]], now: float) -> None:
        """Apps with a rule for occupancy. `occupied`: partition and key of every channel with attachments."""
        self._apps = frozenset(app.encode() for app in apps)
        for key in [key for key in self._place if not self._concerns(key)]:
            self._drop(key)
        self._look_at_all(self._owned, occupied, now)

    def restore(self, partition: int, records: dict[bytes, bytes]) -> None:
        self._view(partition).restore(records)

    def own(self, partitions: frozenset[int], occupied: Iterable[tuple[int, bytes]], now: float) -> None:
        """From now on this core owns these, and no others."""
        gained = partitions - self._owned
        self._owned = partitions
        for key in [key for key, partition in self._place.items() if partition not in partitions]:
            self._drop(key)
        if gained:
            self._look_at_all(gained, occupied, now)

    def _look_at_all(self, partitions: frozenset[int], occupied: Iterable[tuple[int, bytes]], now: float) -> None:
        """The former owner may have left something unsaid."""
        if not self._apps:
            return
        said = ((partition, key) for partition in partitions for key, known in self._view(partition).channels.items() if any(known.counts))
        for partition, key in [*said, *occupied]:
            if partition in partitions and key not in self._place and self._concerns(key):
                self._later(partition, key, now + SETTLE_S)

    def _concerns(self, key: bytes) -> bool:
        return key.partition(b":")[0] in self._apps and not is_qualified(key)

    def changed(self, partition: int, key: bytes, now: float, now_ms: int) -> None:
        """The sums of a channel may have changed."""
        if self._apps and partition in self._owned and key not in self._asked and self._concerns(key):
            self._look(partition, key, now, now_ms)

    def read(self, record: LogRecord, now: float, now_ms: int) -> OccupancyBody | None:
        """An OCCUPANCY record, duplicates left out."""
        body = self._view(record.partition).apply(record)
        key = record.key
        if record.partition in self._owned and self._concerns(key):
            if self._asked.pop(key, None) is not None:
                self._look(record.partition, key, now, now_ms)
            else:  # another's, who may still believe to be the owner, or know better: not to be contradicted at once
                self._later(record.partition, key, now + self._limits.occupancy_interval_s)
        return body

    def sweep(self, now: float, now_ms: int) -> None:
        """As often as `next_at` says."""
        for key in self._wheel.due(now):
            self._look(self._place[key], key, now, now_ms)
        for view in self._views.values():
            view.forget(now_ms - REMEMBERED_MS)

    def next_at(self) -> float:
        at = self._wheel.next_at()
        return float("inf") if at is None else at

    def _look(self, partition: int, key: bytes, now: float, now_ms: int) -> None:
        asked = self._asked.get(key)
        if asked is not None and now < asked[1]:
            self._later(partition, key, asked[1])
            return
        number, said = self._view(partition).said(key)
        counts, at = self._totals(key), self._said_at.get(key)
        if asked is None and at is not None and now >= at + self._limits.occupancy_interval_s:
            del self._said_at[key]
            at = None
        if counts == said and asked is None:
            if at is None:
                self._drop(key)
            else:
                self._later(partition, key, at + self._limits.occupancy_interval_s)
            return
        crossed = any((was == 0) != (count == 0) for was, count in zip(said, counts, strict=True))
        if asked is None and at is not None and not crossed:
            self._later(partition, key, at + self._limits.occupancy_interval_s)
            return
        if asked is None and key not in self._place and len(self._place) >= self._limits.occupancy_events:
            self._counters["occupancy.unsaid"] += 1
            return
        self._say(partition, key, number + 1, counts, now, now_ms)

    def _say(self, partition: int, key: bytes, number: int, counts: tuple[int, ...], now: float, now_ms: int) -> None:
        self._asked[key] = (number, now + AGAIN_S)
        self._said_at[key] = now
        self._later(partition, key, now + AGAIN_S)
        channel = key.partition(b":")[2].decode(errors="replace")
        made = f"o:{channel}:{number}"
        self._append(partition, key, _encode(OccupancyBody(id=made[2:], timestamp=now_ms, n=number, counts=counts)), made)

    def _later(self, partition: int, key: bytes, at: float) -> None:
        self._place[key] = partition
        self._wheel.schedule(key, at)

    def _drop(self, key: bytes) -> None:
        self._place.pop(key, None)
        self._said_at.pop(key, None)
        self._asked.pop(key, None)
        self._wheel.cancel(key)

    def _view(self, partition: int) -> PartitionOccupancy:
        view = self._views.get(partition)
        if view is None:
            view = self._views[partition] = PartitionOccupancy(self._limits.lifecycle_closed)
        return view

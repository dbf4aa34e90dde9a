"""How many there are on each channel, over all edges. Source: Ably protocol docs, 10.2 to 10.4.

Each edge counts its own attachments and reports them (`Counts`). The core that hears it writes them to `tidegate.sessions`, under
`counts:<boot id of the edge>:<app>:<channel>`, and every core reads all of them: so every core can add them up, and none has to be asked.
Members of the presence set are no count of an edge: they come from the view of the log.

What an edge says last counts, whichever core it said it to: reports are numbered, and an older one that comes late is ignored by all who
read it. Compaction would keep it, though, since it was written last: so whoever wrote either writes again what holds. A channel that no
attachment is left of has a report of zeros first and a tombstone some time later.

A dead edge reports nothing. Its counts end with its lease; the tombstones follow when the lease itself is forgotten. As with leases
(`core.connections`) that is done by whoever wrote a record, and by anybody if that core does not.
"""

from __future__ import annotations

import heapq
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice

import msgspec

from core.channel import OpenChannel
from core.effects import Effect, LinkSend, ShowOccupancy, WriteSession
from relay.link.frames import Counts, Lane
from relay.link.frames import Occupancy as OccupancyFrame
from relay.model.channel import log_key, parse_channel
from relay.model.errors import RelayError
from relay.model.limits import CoreLimits
from relay.model.occupancy import ATTACHED

PREFIX = "counts"
RECORD_VERSION = 1
_NOTHING = (0,) * len(ATTACHED)
_MOST = (1 << 31) - 1
_EMPTY_S = 10.0
"""How long zeros stand before their tombstone: an edge that changes its core, or its mind, has said so by then."""
_OTHERS_S = 60.0
"""How much longer everybody else waits for the core that wrote a record to write its tombstone."""
_UNLEASED_S = 60.0
"""How long the counts of an edge without any lease stay: its lease may be on its way."""
_TOMBSTONES_PER_SWEEP = 1_000
_SETTLED = 50_000
"""Numbers of last reports remembered beyond their tombstones, so that what comes later still is known for late."""


class CountsRecord(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """`counts` in the order of `relay.model.occupancy.ATTACHED`, as the edge process gave them in its `number`-th report."""

    v: int = RECORD_VERSION
    core: str
    """Who wrote this record."""
    number: int
    counts: tuple[int, ...]


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(CountsRecord).decode


class _Entry:
    """What one edge last said of one channel."""

    __slots__ = ("core", "counts", "number", "since")

    def __init__(self, core: str, number: int, counts: tuple[int, ...], since: float) -> None:
        self.core = core
        self.number = number
        self.counts = counts
        self.since = since
        """When it was read (monotonic seconds)."""


class _Edge:
    """What one edge process has reported. While it is linked here: what is still to be written of it."""

    __slots__ = ("alive", "allowance", "at", "entries", "unleased", "waiting")

    def __init__(self, now: float, allowance: float) -> None:
        self.entries: dict[bytes, _Entry] = {}
        """By log key."""
        self.alive = False
        self.unleased: float | None = None
        """Since when no lease of it is known."""
        self.waiting: dict[bytes, CountsRecord | None] = {}
        """None: a tombstone."""
        self.allowance = allowance
        self.at = now


class _Watched:
    """A channel whose occupancy is wanted here: by open channels of links, and by operators."""

    __slots__ = ("at", "due", "holders", "shown", "told")

    def __init__(self) -> None:
        self.holders: dict[OpenChannel, str] = {}
        """Each with the session whose right it is."""
        self.shown = False
        self.told: tuple[int, ...] | None = None
        """What was sent last, to all of them."""
        self.at = float("-inf")
        self.due = False


class Occupancies:
    """`emit` takes effects, `number` gives tickets.

    `alive(boot)`: whether the edge process has a lease that has not run out; `leased(boot)`: whether any lease of it is known.
    `members(key)`: the size of a channel's presence set. `changed(key)` is told of every channel whose number of attachments may have
    changed. `permitted(channel, session)`: whether that session, on the channel's link, still has the right to know.
    """

    def __init__(
        self,
        core: str,
        limits: CoreLimits,
        counters: Counter[str],
        *,
        emit: Callable[[Effect], None],
        number: Callable[[], int],
        alive: Callable[[str], bool],
        leased: Callable[[str], bool],
        members: Callable[[bytes], int],
        changed: Callable[[bytes], None],
        permitted: Callable[[OpenChannel, str], bool],
    ) -> None:
        self._core = core
        self._limits = limits
        self._counters = counters
        self._emit = emit
        self._number = number
        self._alive = alive
        self._leased = leased
        self._members = members
        self._changed = changed
        self._permitted = permitted
        self._edges: dict[str, _Edge] = {}
        """By boot id."""
        self._boots: dict[bytes, dict[str, None]] = {}
        """Who has reported a channel, by log key."""
        self._size = 0
        self._settled: OrderedDict[tuple[str, bytes], int] = OrderedDict()
        self._zeros: dict[tuple[str, bytes], None] = {}
        """Reports of zeros that wait for their tombstone, the oldest first."""
        self._flying: dict[int, tuple[str, bytes, CountsRecord | None]] = {}
        self._in_flight: set[tuple[str, bytes]] = set()
        self._watched: dict[bytes, _Watched] = {}
        self._by_link: dict[int, dict[OpenChannel, None]] = {}
        self._due: list[tuple[float, bytes]] = []

    def __len__(self) -> int:
        return self._size

    @property
    def watched(self) -> int:
        return len(self._watched)

    # --- the sums --------------------------------------------------------------------------------------------------------------------

    def totals(self, key: bytes) -> tuple[int, ...]:
        """The counts of a channel in the order of `relay.model.occupancy.METRICS`."""
        return (*self._attached(key), self._members(key))

    def connections(self, key: bytes) -> int:
        """How many attachments a channel has."""
        return sum(self._edges[boot].entries[key].counts[0] for boot in self._boots.get(key, ()) if self._edges[boot].alive)

    def occupied(self) -> Iterator[bytes]:
        """Every channel that somebody is attached to. O(channels with attachments): for a new owner."""
        return (key for key in list(self._boots) if self.connections(key))

    @property
    def reported_channels(self) -> Iterable[bytes]:
        """Every channel that an edge has reported, with or without attachments left."""
        return self._boots

    def _attached(self, key: bytes) -> Sequence[int]:
        found = [self._edges[boot].entries[key].counts for boot in self._boots.get(key, ()) if self._edges[boot].alive]
        if not found:
            return _NOTHING
        return found[0] if len(found) == 1 else [sum(column) for column in zip(*found, strict=True)]

    # --- what edges report -----------------------------------------------------------------------------------------------------------

    def reported(self, boot: str, frame: Counts, now: float) -> None:
        """An edge that is linked here has said how many it has on a channel. What is written is the newest, not every one."""
        edge = self._edge(boot, now)
        key, counts = self._checked(edge, frame)
        if key is None:
            self._counters["occupancy.refused"] += 1
            return
        known = edge.entries.get(key)
        before = edge.waiting.get(key)
        if max(0 if known is None else known.number, 0 if before is None else before.number) >= frame.number:
            return
        edge.waiting[key] = CountsRecord(core=self._core, number=frame.number, counts=counts)
        self._write_waiting(boot, edge, now)

    def knows(self, boot: str, frame: Counts) -> bool:
        """Whether the edge process has reported that channel before."""
        edge = self._edges.get(boot)
        return edge is not None and log_key(frame.app, frame.channel) in edge.entries

    def _checked(self, edge: _Edge, frame: Counts) -> tuple[bytes | None, tuple[int, ...]]:
        counts = tuple(frame.counts)
        if len(counts) < len(ATTACHED) or not all(0 <= count <= _MOST for count in counts) or not 0 < frame.number < 1 << 53:
            return None, counts
        try:
            name = parse_channel(frame.channel)
        except RelayError:
            return None, counts
        key = log_key(frame.app, name.name)
        new = key not in edge.entries and key not in edge.waiting
        if new and len(edge.entries) + len(edge.waiting) >= self._limits.link_counts:
            return None, counts
        return key, counts[: len(ATTACHED)]

    def _write_waiting(self, boot: str, edge: _Edge, now: float) -> None:
        most = float(self._limits.link_counts_per_s)
        edge.allowance = min(most, edge.allowance + (now - edge.at) * most)
        edge.at = now
        for key in list(edge.waiting) if edge.allowance >= 1 else ():
            if edge.allowance < 1:
                return
            if (boot, key) not in self._in_flight:
                edge.allowance -= 1
                self._write(boot, key, edge.waiting.pop(key))

    def _write(self, boot: str, key: bytes, record: CountsRecord | None) -> None:
        ticket = self._number()
        self._flying[ticket] = (boot, key, record)
        self._in_flight.add((boot, key))
        self._emit(WriteSession(ticket, f"{PREFIX}:{boot}:{key.decode()}", None if record is None else _encode(record)))

    def settled(self, ticket: int, ok: bool, now: float) -> bool:
        """The record of this ticket was written, or failed to be. False: it is not one of these."""
        flown = self._flying.pop(ticket, None)
        if flown is None:
            return False
        boot, key, record = flown
        self._in_flight.discard((boot, key))
        edge = self._edges.get(boot)
        if edge is None:
            return True
        if not ok:
            self._counters["occupancy.write_failed"] += 1
            if record is not None:
                edge.waiting.setdefault(key, record)  # at the next sweep
        elif edge.waiting:
            self._write_waiting(boot, edge, now)
        return True

    # --- what every core reads -------------------------------------------------------------------------------------------------------

    def read(self, name: str, value: bytes | None, now: float) -> None:
        """One record, in log order. `name` is its key without `counts:`."""
        boot, _, channel = name.partition(":")
        key = channel.encode()
        if value is None:
            self._forgotten(boot, key, now)
            return
        try:
            record = _decode(value)
        except msgspec.MsgspecError:
            record = None
        if record is None or len(record.counts) != len(ATTACHED):
            self._counters["sessions.unreadable"] += 1
            return
        edge = self._edge(boot, now)
        known = edge.entries.get(key)
        last = self._settled.get((boot, key), 0) if known is None else known.number
        if record.number <= last:
            ours = record.core == self._core or (known is not None and known.core == self._core)
            if ours and record.number < last and key not in edge.waiting:
                # Compaction keeps what was written last, and that says less than is known. Who wrote it may be dead by now.
                edge.waiting[key] = None if known is None else CountsRecord(core=self._core, number=last, counts=known.counts)
                self._write_waiting(boot, edge, now)
            return
        if known is None:
            if self._size >= self._limits.occupancy_entries:
                self._counters["occupancy.full"] += 1
                return
            self._size += 1
            self._boots.setdefault(key, {})[boot] = None
        self._settled.pop((boot, key), None)
        edge.entries[key] = _Entry(record.core, record.number, record.counts, now)
        self._zeros.pop((boot, key), None)
        if not any(record.counts):
            self._zeros[boot, key] = None
        if edge.alive:
            self._tell(key, now)

    def _forgotten(self, boot: str, key: bytes, now: float) -> None:
        edge = self._edges.get(boot)
        known = None if edge is None else edge.entries.get(key)
        if edge is None or known is None:
            return
        if any(known.counts) and edge.alive:
            # Somebody believed that nobody was there any more. Who knows better says so.
            if known.core == self._core and key not in edge.waiting:
                edge.waiting[key] = CountsRecord(core=self._core, number=known.number, counts=known.counts)
                self._write_waiting(boot, edge, now)
            return
        del edge.entries[key]
        self._size -= 1
        self._zeros.pop((boot, key), None)
        self._settled[boot, key] = known.number
        if len(self._settled) > _SETTLED:
            self._settled.popitem(last=False)
        boots = self._boots[key]
        del boots[boot]
        if not boots:
            del self._boots[key]
        if edge.alive:
            self._tell(key, now)

    def _edge(self, boot: str, now: float) -> _Edge:
        edge = self._edges.get(boot)
        if edge is None:
            edge = self._edges[boot] = _Edge(now, self._limits.link_counts_per_s)
            edge.alive = self._alive(boot)
        return edge

    # --- who wants to know -----------------------------------------------------------------------------------------------------------

    def watch(self, channel: OpenChannel, session: str, now: float) -> None:
        """From now on, beginning at once."""
        watched = self._watch(channel.key)
        watched.holders[channel] = session
        self._by_link.setdefault(channel.link, {})[channel] = None
        totals = self.totals(channel.key)
        if watched.told is not None and totals != watched.told:
            self._send(channel.key, watched, now)  # to the others as well: it is as if their second were over
        else:
            watched.told, watched.at = totals, now
            self._emit(LinkSend(channel.link, OccupancyFrame(channel.ref, list(totals)), Lane.LIVE))

    def unwatch(self, channel: OpenChannel) -> None:
        watched = self._watched.get(channel.key)
        if watched is None or watched.holders.pop(channel, None) is None:
            return
        self._release(channel.key, watched)
        there = self._by_link[channel.link]
        del there[channel]
        if not there:
            del self._by_link[channel.link]

    def link_lost(self, link: int) -> None:
        for channel in list(self._by_link.get(link, ())):
            self.unwatch(channel)

    def show(self, key: bytes, *, on: bool, now: float) -> None:
        """The same for operators."""
        if on:
            watched = self._watch(key)
            watched.shown = True
            self._emit(ShowOccupancy(key, self.totals(key)))
        elif (known := self._watched.get(key)) is not None:
            known.shown = False
            self._release(key, known)

    def _watch(self, key: bytes) -> _Watched:
        watched = self._watched.get(key)
        if watched is None:
            watched = self._watched[key] = _Watched()
        return watched

    def _release(self, key: bytes, watched: _Watched) -> None:
        if not watched.holders and not watched.shown:
            del self._watched[key]

    def touched(self, key: bytes, now: float) -> None:
        """The presence set of a channel has changed."""
        if self._watched:
            self._show_change(key, now)

    def _tell(self, key: bytes, now: float) -> None:
        self._changed(key)
        self._show_change(key, now)

    def _show_change(self, key: bytes, now: float) -> None:
        watched = self._watched.get(key)
        if watched is None:
            return
        totals, told = self.totals(key), watched.told
        if totals == told:
            return
        crossed = told is None or any((was == 0) != (count == 0) for was, count in zip(told, totals, strict=True))
        at = watched.at + self._limits.occupancy_interval_s
        if crossed or now >= at:
            self._send(key, watched, now)
        elif not watched.due:
            watched.due = True
            heapq.heappush(self._due, (at, key))

    def _send(self, key: bytes, watched: _Watched, now: float) -> None:
        watched.told = totals = self.totals(key)
        watched.at = now
        counts = list(totals)
        for channel, session in list(watched.holders.items()):
            if not self._permitted(channel, session):
                self._counters["occupancy.no_witness"] += 1
                self.unwatch(channel)
                continue
            self._emit(LinkSend(channel.link, OccupancyFrame(channel.ref, counts), Lane.LIVE))
        if watched.shown:
            self._emit(ShowOccupancy(key, totals))

    # --- time ------------------------------------------------------------------------------------------------------------------------

    def next_at(self) -> float:
        """When `turn` has something to do."""
        return self._due[0][0] if self._due else float("inf")

    def turn(self, now: float) -> None:
        """The last states of those whose second is over."""
        while self._due and self._due[0][0] <= now:
            _, key = heapq.heappop(self._due)
            watched = self._watched.get(key)
            if watched is not None and watched.due:
                watched.due = False
                if self.totals(key) != watched.told:
                    self._send(key, watched, now)

    def sweep(self, now: float) -> None:
        """Once a second or so."""
        tombstones = _TOMBSTONES_PER_SWEEP
        for boot, edge in list(self._edges.items()):
            alive = self._alive(boot)
            if alive != edge.alive:
                edge.alive = alive
                for key in list(edge.entries):
                    self._tell(key, now)
            if edge.waiting:
                self._write_waiting(boot, edge, now)
            edge.unleased = None if self._leased(boot) else edge.unleased or now
            if edge.unleased is None:
                continue
            edge.waiting.clear()
            if not edge.entries:
                del self._edges[boot]
            elif now - edge.unleased >= _UNLEASED_S:
                for key, known in list(edge.entries.items()):
                    if tombstones and now - edge.unleased >= _UNLEASED_S + (0 if known.core == self._core else _OTHERS_S):
                        tombstones -= self._bury(boot, key)
        for boot, key in list(islice(self._zeros, 4 * _TOMBSTONES_PER_SWEEP)):
            known = self._edges[boot].entries[key]
            if tombstones and now - known.since >= _EMPTY_S + (0 if known.core == self._core else _OTHERS_S):
                tombstones -= self._bury(boot, key)

    def _bury(self, boot: str, key: bytes) -> bool:
        if (boot, key) in self._in_flight:
            return False
        self._write(boot, key, None)
        return True

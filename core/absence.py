"""Absence: what becomes of members whose connection has ended, moved or been lost. `core.presence` says what the records mean.

Any core, for a connection that it serves: GONE at a drop, the leaves at a close, BACK before a resumed client is told so. Should that be
lost with the core, or the connection have entered on a channel of which this core did not know yet, the owner of the partition makes up for
it: it compares who is present with what `tidegate.sessions` says of their connections.

The owner alone: EDGE_GONE for an edge whose lease has run out, EDGE_BACK when it is there again, and the leaves once a grace is over. Two
cores that both believe to own a partition do no harm: each of these records counts only where it still holds, and a repetition of it says
nothing new. So ids are made of what was known when the record was appended, and a record whose fate is unknown is simply appended again.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import msgspec

from core.attendance import FIXTURE, Attendance, Tails
from core.connections import ConnectionRecord, Connections, State
from core.effects import Effect, Produce
from core.presence import Holder
from relay.model.limits import PROTOCOL, CoreLimits
from relay.model.message import Kind, PresenceAction, PresenceItem, RecordBody

_PER_TURN = 250
_SCANNED_PER_SWEEP = 5_000
_SUSPECTS = 50_000
_SECOND_LOOK_S = 1.0
"""What was read of a connection just now is mostly about to be followed by the record that goes with it."""
_UNKNOWN_S = 10.0
"""How long a connection may have members before its own first record has been read."""
_LEAVE_BYTES = 131_072
"""Members, with their data, that leave in one record: it is shown with the data."""
_FORGET_EDGES_MS = 3_600_000
_FORGET_EDGES_EVERY_S = 60.0

_encode = msgspec.msgpack.Encoder().encode

Place = tuple[int, bytes, str]
"""Partition, log key, connection; for an edge: partition, nothing, boot id."""


class Wait:
    """Records that must be durable before `job` goes on."""

    __slots__ = ("failed", "job", "left", "until")

    def __init__(self, job: Any, left: int, until: float) -> None:
        self.job = job
        self.left = left
        self.until = until
        self.failed = False


class _Own:
    """A record that this module has appended. `offset` once it is durable: it counts when it has been read."""

    __slots__ = ("offset", "partition", "place", "wait")

    def __init__(self, partition: int, place: Place, wait: Wait | None) -> None:
        self.partition = partition
        self.place = place
        self.wait = wait
        self.offset: int | None = None


class Absence:
    """`emit` takes effects, `number` gives tickets."""

    def __init__(
        self,
        attendance: Attendance,
        connections: Connections,
        limits: CoreLimits,
        counters: Counter[str],
        tails: Tails,
        *,
        emit: Callable[[Effect], None],
        number: Callable[[], int],
    ) -> None:
        self._attendance = attendance
        self._connections = connections
        self._limits = limits
        self._counters = counters
        self._tails = tails
        self._emit = emit
        self._number = number
        self.owned: frozenset[int] = frozenset()
        self._own: dict[int, _Own] = {}
        """Unreported, by ticket."""
        self._busy: dict[Place, _Own] = {}
        """The last record that was appended about a place, until it has been read."""
        self._on_their_way: Counter[int] = Counter()
        self._waits: dict[int, Wait] = {}
        self._suspects: deque[tuple[float, str]] = deque()
        self._unknown: OrderedDict[str, float] = OrderedDict()
        """Since when connections with members have been found to be unknown."""
        self._due: deque[Place] = deque()
        """Whose grace is over."""
        self._scan: Iterator[tuple[int, str]] = iter(())
        self._forget_edges_at = 0.0

    # --- what edges say ----------------------------------------------------------------------------------------------------------------

    def departed(self, connection: str, incarnation: int, *, closed: bool, now_ms: int) -> None:
        """Its socket is gone or it was closed, and it is for this core to say so. Also where it is just about to have members: what it
        sent before is before this in the log."""
        record = self._connections.find(connection)
        places: dict[tuple[int, bytes], set[str]] = {}
        causes: dict[tuple[int, bytes], int | None] = {}
        for partition, holder in self._attendance.holders(connection):
            if holder.incarnation <= incarnation:
                places[partition, holder.key] = set(holder.members)
                causes[partition, holder.key] = holder.gone
        for partition, key, entering in self._attendance.coming(connection):
            places.setdefault((partition, key), set()).update(entering)
        for (partition, key), clients in places.items():
            cause = causes.get((partition, key))
            if closed:
                self._leave(partition, key, connection, clients, cause=cause, word=f"closed:{cause}", now_ms=now_ms)
            elif cause is None:
                self._gone(partition, key, connection, incarnation, self._asked(record), now_ms)

    def bring_back(self, connection: str, incarnation: int, boot: str, job: Any, now: float, now_ms: int) -> bool:
        """It goes on as `incarnation` at that edge. Whether `job` has to wait for that to be in the log (`reported`, `sweep`)."""
        places = {(partition, holder.key) for partition, holder in self._attendance.holders(connection) if holder.incarnation < incarnation}
        places |= {(partition, key) for partition, key, _ in self._attendance.coming(connection)}
        if not places:
            return False
        wait = Wait(job, len(places), now + self._limits.presence_back_wait_s)
        self._waits[id(wait)] = wait
        for partition, key in places:
            self._back(partition, key, connection, incarnation, boot, now_ms, wait)
        return True

    def edge_up(self, boot: str, now_ms: int) -> None:
        for partition in self.owned:
            if boot in self._attendance.views[partition].gone_edges:
                self._edge(Kind.EDGE_BACK, partition, boot, now_ms)

    def end_fixtures(self, app: str, now_ms: int) -> None:
        """The app is no more. O(channels with members): for sandboxes."""
        of_app = app.encode() + b":"
        for partition, view in self._attendance.views.items():
            for key, channel in view.channels.items():
                if key.startswith(of_app):
                    for holder in channel.holders.values():
                        if holder.edge == FIXTURE:
                            self._leave(partition, key, holder.connection, set(holder.members), cause=None, word="app", now_ms=now_ms)

    # --- records -----------------------------------------------------------------------------------------------------------------------

    def _gone(self, partition: int, key: bytes, connection: str, incarnation: int, grace_ms: int | None, now_ms: int) -> None:
        word = f"gone:{connection}:{incarnation}"
        body: dict[str, Any] = {"connection_id": connection, "incarnation": incarnation, "grace_ms": grace_ms}
        self._append(Kind.GONE, partition, key, connection, word, now_ms, **body)

    def _back(
        self, partition: int, key: bytes, connection: str, incarnation: int, boot: str, now_ms: int, wait: Wait | None = None
    ) -> None:
        word = f"back:{connection}:{incarnation}"
        body: dict[str, Any] = {"connection_id": connection, "incarnation": incarnation, "edge": boot}
        self._append(Kind.BACK, partition, key, connection, word, now_ms, wait=wait, **body)

    def _edge(self, kind: Kind, partition: int, boot: str, now_ms: int) -> None:
        if not self._is_busy((partition, b"", boot)):
            word = f"edge-{'gone' if kind is Kind.EDGE_GONE else 'back'}:{boot}"
            self._append(kind, partition, b"", boot, word, now_ms, edge=boot)

    def _leave(self, partition: int, key: bytes, connection: str, clients: set[str], *, cause: int | None, word: str, now_ms: int) -> None:
        """Their leaves, in as many records as it takes. They are never older than the members, by whosever clock."""
        channel = self._attendance.views[partition].channels.get(key)
        items: list[PresenceItem] = []
        size, latest, piece = 0, now_ms, 0

        def append() -> None:
            nonlocal items, size, latest, piece
            fields: dict[str, Any] = {"connection_id": connection, "presence": items, "cause": cause}
            self._append(Kind.PRESENCE, partition, key, connection, f"leave:{connection}:{word}:{piece}", latest, **fields)
            items, size, latest, piece = [], 0, now_ms, piece + 1

        for client_id in sorted(clients):
            member = None if channel is None else channel.find(connection, client_id)
            more = len(client_id) if member is None else member.size
            if items and (len(items) == PROTOCOL.max_messages or size + more > _LEAVE_BYTES):
                append()
            items.append(PresenceItem(action=PresenceAction.LEAVE, client_id=client_id))
            size += more
            if member is not None:
                latest = max(latest, member.state.timestamp)
        if items:
            append()

    def _append(
        self, kind: Kind, partition: int, key: bytes, who: str, word: str, at_ms: int, *, wait: Wait | None = None, **body: Any
    ) -> None:
        """Appended again with nothing read in between, it has the same id, and says the same."""
        text = f"{word}:{self._tails.tail_position(partition)}"
        ticket = self._number()
        self._own[ticket] = self._busy[partition, key, who] = _Own(partition, (partition, key, who), wait)
        self._on_their_way[partition] += 1
        self._counters[f"presence.{kind.name.lower()}"] += 1
        self._emit(Produce(ticket, partition, key, _encode(RecordBody(id=text, timestamp=at_ms, **body)), kind, f"p:{text}"))

    def reported(self, ticket: int, offset: int | None) -> Wait | None:
        """`offset` None: it was not taken, or its fate is unknown. The wait that is thereby over, if one is."""
        own = self._own.pop(ticket, None)
        if own is None:
            return None
        self._on_their_way[own.partition] -= 1
        own.offset = offset
        if self._busy.get(own.place) is own and (offset is None or offset < self._tails.tail_position(own.partition)):
            del self._busy[own.place]
        wait = own.wait
        if wait is None or id(wait) not in self._waits:
            return None
        wait.left -= 1
        wait.failed = wait.failed or offset is None
        if wait.left and not wait.failed:
            return None
        del self._waits[id(wait)]
        return wait

    def _is_busy(self, place: Place) -> bool:
        own = self._busy.get(place)
        if own is None:
            return False
        if own.offset is not None and own.offset < self._tails.tail_position(own.partition):
            del self._busy[place]
            return False
        return True

    # --- the owner ---------------------------------------------------------------------------------------------------------------------

    def suspect(self, connection: str, now: float) -> None:
        """Something was read of it that may not agree with its members."""
        if self.owned and len(self._suspects) < _SUSPECTS:  # those left out are found by going through all
            self._suspects.append((now + _SECOND_LOOK_S, connection))

    def sweep(self, now: float, now_ms: int) -> list[Wait]:
        """Once a second or so, once the core is ready. The waits that have taken too long."""
        for place in list(self._busy):
            self._is_busy(place)
        for partition in self.owned:
            self._check_edges(partition, now, now_ms)
        self._check_connections(now, now_ms)
        self._find_due(now)
        if now >= self._forget_edges_at:
            self._forget_edges_at = now + _FORGET_EDGES_EVERY_S
            for view in self._attendance.views.values():
                view.forget_edges(now_ms - _FORGET_EDGES_MS)
        late = [wait for wait in self._waits.values() if wait.until <= now]
        for wait in late:
            del self._waits[id(wait)]
        return late

    def _check_edges(self, partition: int, now: float, now_ms: int) -> None:
        view = self._attendance.views[partition]
        lasts_ms = int(self._limits.edge_lease_s * 1000)
        for boot in [boot for boot in view.by_edge if boot != FIXTURE and boot not in view.gone_edges]:
            if self._connections.is_silent(boot, now):
                self._edge(Kind.EDGE_GONE, partition, boot, now_ms)
        for boot, known in list(view.gone_edges.items()):
            # By Kafka's clock the edge went a whole lease after it was last heard of: half of that is left for the difference of clocks.
            renewed = self._connections.lease_at(boot) > known.at - lasts_ms // 2 and not self._connections.is_silent(boot, now)
            if renewed or self._connections.is_linked(boot):
                self._edge(Kind.EDGE_BACK, partition, boot, now_ms)

    def _check_connections(self, now: float, now_ms: int) -> None:
        while self._attendance.entered:
            connection = self._attendance.entered.popleft()
            record = self._connections.find(connection)
            if record is None or record.state is not State.LIVE:
                self.suspect(connection, now)
        while self._suspects and self._suspects[0][0] <= now:
            self._check(self.owned, self._suspects.popleft()[1], now, now_ms)
        for connection, since in list(self._unknown.items()):
            if now - since < _UNKNOWN_S:
                break
            del self._unknown[connection]
            self._check(self.owned, connection, now, now_ms, unknown=True)
        for _ in range(_SCANNED_PER_SWEEP):
            found = next(self._scan, None)
            if found is None:
                self._scan = iter([(partition, one) for partition in self.owned for one in self._attendance.views[partition].by_connection])
                return
            self._check((found[0],), found[1], now, now_ms)

    def _check(self, partitions: Iterable[int], connection: str, now: float, now_ms: int, *, unknown: bool = False) -> None:
        """`unknown`: it has been for long enough."""
        record = self._connections.find(connection)
        if record is not None:
            self._unknown.pop(connection, None)
        for partition in partitions:
            for holder in list(self._attendance.views[partition].by_connection.get(connection, {}).values()):
                if holder.edge == FIXTURE or self._is_busy((partition, holder.key, connection)):
                    continue
                if record is not None:
                    if not self._agrees(partition, holder, record, now_ms):
                        self._counters["presence.reconciled"] += 1
                elif holder.gone is None and unknown:
                    self._gone(partition, holder.key, connection, holder.incarnation, None, now_ms)
                elif holder.gone is None:
                    self._unknown.setdefault(connection, now)

    def _agrees(self, partition: int, holder: Holder, record: ConnectionRecord, now_ms: int) -> bool:
        """Whether who is present is what the connection's record says; otherwise it is put right. A record that is behind says nothing."""
        key, connection = holder.key, holder.connection
        if record.incarnation < holder.incarnation:
            return True
        if record.state is State.CLOSED:
            self._leave(partition, key, connection, set(holder.members), cause=holder.gone, word=f"closed:{holder.gone}", now_ms=now_ms)
        elif record.state is State.GONE and holder.gone is None:
            self._gone(partition, key, connection, record.incarnation, self._asked(record), now_ms)
        elif record.state is State.LIVE and record.incarnation > holder.incarnation:
            self._back(partition, key, connection, record.incarnation, record.boot, now_ms)
        else:
            return True
        return False

    def _lives(self, partition: int, holder: Holder, record: ConnectionRecord) -> bool:
        """Whether it was taken for gone because nobody had read of it for too long, and is there: its end will be said once it comes."""
        edge_gone = holder.edge in self._attendance.views[partition].gone_edges
        return record.state is State.LIVE and record.incarnation == holder.incarnation and not edge_gone

    def _asked(self, record: ConnectionRecord | None) -> int | None:
        """The grace that the client asked for, as far as it is granted."""
        if record is None or record.remain_present_ms is None:
            return None
        return max(0, min(record.remain_present_ms, int(self._limits.presence_grace_max_s * 1000)))

    def _find_due(self, now: float) -> None:
        waiting = set(self._due)
        for partition in self.owned:
            for (key, connection), holder in self._attendance.views[partition].gone.items():
                place = (partition, key, connection)
                if now - holder.gone_at >= self._grace_s(holder) and place not in waiting and not self._is_busy(place):
                    self._due.append(place)

    def _grace_s(self, holder: Holder) -> float:
        asked = holder.grace_ms
        if asked is None:
            asked = self._asked(self._connections.find(holder.connection))
        return self._limits.presence_grace_s if asked is None else asked / 1000

    @property
    def has_due(self) -> bool:
        """Whether a turn has something to do."""
        return bool(self._due) and self._has_room(self._due[0][0])

    def _has_room(self, partition: int) -> bool:
        return self._on_their_way[partition] < self._limits.presence_leaves

    def turn(self, now: float, now_ms: int) -> None:
        """Some of the leaves that are due."""
        for _ in range(min(_PER_TURN, len(self._due))):
            partition, key, connection = place = self._due.popleft()
            holder = self._attendance.views[partition].gone.get((key, connection))
            if holder is None or holder.gone is None or partition not in self.owned or self._is_busy(place):
                continue
            if not self._has_room(partition):
                self._due.append(place)
                continue
            if now - holder.gone_at < self._grace_s(holder):
                continue
            record = self._connections.find(connection)
            if record is not None and self._lives(partition, holder, record):
                continue
            if record is None or self._agrees(partition, holder, record, now_ms):
                self._leave(partition, key, connection, set(holder.members), cause=holder.gone, word=str(holder.gone), now_ms=now_ms)

"""Connections across edges and cores: what `tidegate.sessions` says of each, and who may go on with one.

Two kinds of its records, each with the last word under its key (`core.occupancy` and `core.stats` have others there):

    connection:<id>     ConnectionRecord: where the connection is, under which incarnation, and since when it is gone
    edge:<boot>         EdgeRecord: the lease of an edge process, renewed while any core has a link to it

Every core reads all of them, so any core can take a connection over from any other. What a record says can only grow: a later incarnation
replaces an earlier one, and within one *live* becomes *gone* or *closed*, never the reverse. So all readers agree, whatever compaction has
left out; a core whose own record said less than was known already writes again what holds, since compaction keeps what was written last.

Two takers of one incarnation: the first in the log has it (`claim` tells them apart), the other reads that and takes the next.

A dead edge writes nothing. Its connections are gone from the moment its lease ran out: one record for all of them. A lease is judged by
wall clock for a resume, but by the newest lease that was read when it comes to forgetting: a core that hears nothing forgets nobody.
"""

from __future__ import annotations

import enum
import sys
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import msgspec

from core.effects import AskSessionsEnd, Effect, WriteSession
from relay.model.connection_key import ConnectionKey, claimed_id, parse_key
from relay.model.errors import ErrorInfo, RelayError
from relay.model.grants import Grant
from relay.model.keyring import Keyring
from relay.model.limits import CoreLimits

RECORD_VERSION = 1
BAD_KEY = ErrorInfo.of(80018, "invalid connection key")
EXPIRED = ErrorInfo.of(80008, "Unable to recover connection (connection expired)")
TRIES = 8
"""How often one resume may find that another was faster, before its client is told to come again."""

_FORGET_AFTER_S = 60.0
"""How long beyond its time to be resumed a connection is remembered: whoever took it at the last moment has written so by then."""
_SCANNED_PER_SWEEP = 5_000
_WRITTEN_AGAIN_PER_SWEEP = 1_000
_FIRST_WORD_S = 1.0
"""A key that this cluster made, and no record: the client may have come back, by another core, before its first record was in the log."""
_SECOND_WORD_S = 1.0
"""An edge tells every core that knows a connection of its end; those that did not admit it wait so long for the one that did."""


class State(enum.IntEnum):
    LIVE = 0
    GONE = 1
    CLOSED = 2


class ConnectionRecord(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """`incarnation` is +1 per resume. Times are milliseconds of wall clock."""

    v: int = RECORD_VERSION
    core: str
    """Who wrote this record."""
    edge: str
    """SPIFFE id of the edge."""
    boot: str
    app: str
    key_name: str
    client_id: str | None = None
    incarnation: int = 0
    oldest: int = 0
    """The earliest incarnation whose connectionKey still holds: that of the key resumed with, until the client has used the new one."""
    claim: str = ""
    """Random, of the resume that made this incarnation."""
    state: State = State.LIVE
    gone_at: int = 0
    remain_present_ms: int | None = None
    """How long its members stay after an abrupt end, as its client asked when it connected."""
    opened_at: int = 0
    """When it was made; 0 in records of former versions."""

    def says_the_same(self, other: ConnectionRecord) -> bool:
        return self == other or self == msgspec.structs.replace(other, core=self.core)


class EdgeRecord(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The edge process was linked to `core` at `at`, in milliseconds of wall clock."""

    v: int = RECORD_VERSION
    core: str
    edge: str
    at: int


def join(known: ConnectionRecord | None, record: ConnectionRecord) -> ConnectionRecord:
    """What is known after `record`. The same whatever the order, but for two claims of one incarnation, of which the first counts."""
    if known is None or record.incarnation > known.incarnation:
        return record
    if record.incarnation < known.incarnation or (record.claim, record.edge, record.boot) != (known.claim, known.edge, known.boot):
        return known
    state, oldest = max(known.state, record.state), max(known.oldest, record.oldest)
    gone_at = min((at for at in (known.gone_at, record.gone_at) if at), default=0)
    if (state, oldest, gone_at) == (known.state, known.oldest, known.gone_at):
        return known
    return msgspec.structs.replace(record, state=state, oldest=oldest, gone_at=gone_at)


class Change(NamedTuple):
    connection: str
    before: ConnectionRecord | None
    after: ConnectionRecord | None
    """None after a tombstone."""


class Claim:
    """One attempt of a client to go on with a connection. `edge` and `boot` are those of its link now, `job` is the caller's."""

    __slots__ = (
        "app",
        "boot",
        "client_id",
        "connection",
        "edge",
        "job",
        "key_name",
        "record",
        "remain_present_ms",
        "text",
        "tries",
        "waited",
    )

    def __init__(
        self,
        text: str,
        *,
        edge: str,
        boot: str,
        app: str,
        key_name: str,
        client_id: str | None,
        job: Any,
        remain_present_ms: int | None = None,
    ) -> None:
        self.text = text
        self.edge = edge
        self.boot = boot
        self.app = app
        self.key_name = key_name
        self.client_id = client_id
        self.job = job
        self.remain_present_ms = remain_present_ms
        self.connection = claimed_id(text) or ""
        self.record: ConnectionRecord | None = None
        """What was written for it."""
        self.tries = 0
        self.waited = False
        """For a first word of its connection."""


class _Edge:
    """An edge process with links to this core."""

    __slots__ = ("identity", "links", "renewed")

    def __init__(self, identity: str) -> None:
        self.identity = identity
        self.links: set[int] = set()
        self.renewed = 0


class Connections:
    """`emit` takes effects, `number` gives numbers for questions and tickets, `random(n)` n unpredictable bytes."""

    def __init__(
        self,
        core: str,
        keyring: Keyring,
        limits: CoreLimits,
        counters: Counter[str],
        *,
        emit: Callable[[Effect], None],
        number: Callable[[], int],
        random: Callable[[int], bytes],
        lives: Callable[[str, int], None] = lambda _app, _by: None,
    ) -> None:
        """`lives(app, by)`: so many more of its connections live."""
        self._lives = lives
        self._core = core
        self._keyring = keyring
        self._limits = limits
        self._counters = counters
        self._emit = emit
        self._number = number
        self._random = random
        self._ttl_ms = int(limits.connection_state_ttl_s * 1000)
        self._lease_ms = int(limits.edge_lease_s * 1000)
        self._table: OrderedDict[str, ConnectionRecord] = OrderedDict()
        self._leases: dict[str, EdgeRecord] = {}
        self._heard: dict[str, float] = {}
        """When the latest lease of an edge was read, in monotonic seconds; of one without any, when somebody asked for it."""
        self._edges: dict[str, _Edge] = {}
        """Edge processes linked here, by boot id."""
        self._heard_ms = 0
        """The newest lease read: as far as this core knows, it is not later."""
        self._unread: dict[str, ConnectionRecord] = {}
        """Connections admitted here whose first record has not been read back."""
        self._asking: dict[int, object] = {}
        self._early: dict[str, list[tuple[float, object]]] = {}
        """Who waits for the first word of a connection, each with the time to give up on that, by connection."""
        self._early_jobs = 0
        self._writing: dict[int, tuple[str, ConnectionRecord]] = {}
        self._claims: dict[int, Claim] = {}
        self._again: dict[str, ConnectionRecord] = {}
        """Records that could not be written: once more at the next sweep."""
        self._second: deque[tuple[float, str, ConnectionRecord]] = deque()
        self._scan: Iterator[str] = iter(())

    def __len__(self) -> int:
        return len(self._table)

    @property
    def leases(self) -> int:
        """Edge processes that are known."""
        return len(self._leases)

    # --- edges -----------------------------------------------------------------------------------------------------------------------

    def edge_up(self, link: int, identity: str, boot: str, now_ms: int) -> None:
        edge = self._edges.get(boot)
        if edge is None:
            edge = self._edges[boot] = _Edge(identity)
        edge.links.add(link)
        # Before anything is admitted there: in the log, too, the lease comes first.
        self._renew(boot, edge, now_ms)

    def edge_lost(self, link: int) -> None:
        for boot, edge in list(self._edges.items()):
            edge.links.discard(link)
            if not edge.links:
                del self._edges[boot]

    def is_linked(self, boot: str) -> bool:
        return boot in self._edges

    def is_silent(self, boot: str, now: float) -> bool:
        """Whether an edge process counts as dead: no link to this core, and no lease read for as long as one lasts. By this core's own
        clock, so that no other's can end an edge; of an edge that was never heard of it runs from the first time that somebody asks."""
        return boot not in self._edges and now - self._heard.setdefault(boot, now) > self._limits.edge_lease_s

    def lease_at(self, boot: str) -> int:
        """The wall clock of its latest lease, in milliseconds; 0 if there is none."""
        lease = self._leases.get(boot)
        return 0 if lease is None else lease.at

    def _renew(self, boot: str, edge: _Edge, now_ms: int) -> None:
        """Unless another core has just done so."""
        lease = self._leases.get(boot)
        last = max(edge.renewed, 0 if lease is None else lease.at)
        if not 0 <= now_ms - last < self._limits.edge_lease_renewal_s * 1000:
            edge.renewed = now_ms
            self._emit(WriteSession(self._number(), f"edge:{boot}", _encode(EdgeRecord(core=self._core, edge=edge.identity, at=now_ms))))

    def lives(self, boot: str, now_ms: int) -> bool:
        """Whether the edge process is linked here, or has a lease that has not run out."""
        lease = self._leases.get(boot)
        return boot in self._edges or (lease is not None and lease.at + self._lease_ms >= now_ms)

    def is_leased(self, boot: str) -> bool:
        """Whether it is known at all."""
        return boot in self._edges or boot in self._leases

    def lease_ages(self, now_ms: int) -> list[tuple[str, str, int]]:
        """Known edge processes: SPIFFE id, boot id, and milliseconds since the last word of their lease."""
        return [(lease.edge, boot, max(0, now_ms - lease.at)) for boot, lease in self._leases.items()]

    # --- a connection's life ---------------------------------------------------------------------------------------------------------

    def connected(self, connection: str, grant: Grant, now_ms: int, remain_present_ms: int | None = None) -> None:
        """A new one. Nobody waits for the record."""
        record = ConnectionRecord(
            core=self._core,
            edge=grant.edge,
            boot=grant.boot,
            app=grant.app,
            key_name=grant.key_name,
            client_id=grant.client_id,
            remain_present_ms=remain_present_ms,
            opened_at=now_ms,
        )
        self._unread[connection] = record
        self._write(connection, record)

    def used(self, edge: str, boot: str, connection: str, incarnation: int) -> None:
        """The client has used its new transport: earlier keys are void."""
        known = self._held_by(edge, boot, connection, incarnation)
        if known is not None and known.state is State.LIVE and known.oldest < incarnation:
            self._write(connection, msgspec.structs.replace(known, core=self._core, oldest=incarnation))

    def departed(self, edge: str, boot: str, connection: str, incarnation: int, *, closed: bool, now: float, now_ms: int) -> bool:
        """Its socket at that edge is gone, or its client has closed it. An edge speaks for its own connections only. Whether it is for this
        core to say so at once: others hear of it, too."""
        known = self._held_by(edge, boot, connection, incarnation)
        state = State.CLOSED if closed else State.GONE
        if known is None or known.state >= state:
            return False
        record = msgspec.structs.replace(known, core=self._core, state=state, gone_at=known.gone_at or now_ms)
        if known.core == self._core or closed:
            self._write(connection, record)
        else:
            self._second.append((now + _SECOND_WORD_S, connection, record))
            if len(self._second) > self._limits.session_writes:
                _, connection, record = self._second.popleft()
                self._write(connection, record)
        return known.core == self._core

    def keep(self, connection: str, record: ConnectionRecord) -> None:
        """It was taken for dead, and lives."""
        self._counters["sessions.kept"] += 1
        self._write(connection, msgspec.structs.replace(record, core=self._core, state=State.LIVE, gone_at=0))

    def find(self, connection: str) -> ConnectionRecord | None:
        record = self._table.get(connection)
        return self._unread.get(connection) if record is None else record

    def floor(self, connection: str) -> int:
        """The lowest incarnation whose grants may still count."""
        record = self._table.get(connection)
        return 0 if record is None else record.incarnation + (record.state is not State.LIVE)

    def _held_by(self, edge: str, boot: str, connection: str, incarnation: int) -> ConnectionRecord | None:
        known = self.find(connection)
        if known is None or (known.edge, known.boot, known.incarnation) != (edge, boot, incarnation):
            return None
        return known

    # --- resume ----------------------------------------------------------------------------------------------------------------------

    def ask(self, waiting: object) -> None:
        """Have `waiting` back from `answered` when everything written so far, by any core, has been read. Raises: RelayError 50004."""
        if len(self._asking) >= self._limits.session_waiters:
            raise RelayError(50004, "The service is busy; try again")
        ask = self._number()
        self._asking[ask] = waiting
        self._emit(AskSessionsEnd(ask))

    def answered(self, ask: int) -> object | None:
        return self._asking.pop(ask, None)

    def judge(self, text: str, app: str, client_id: str | None, now_ms: int) -> tuple[ConnectionKey, ConnectionRecord] | ErrorInfo:
        """Whether the bearer of a key may go on with its connection, as far as this core has read; the error of the new connection it
        gets otherwise. Raises: RelayError 40102 if the connection is somebody else's."""
        record = self.find(claimed_id(text) or "")
        key = parse_key(self._keyring, app, text)
        if key is None:
            if record is not None and record.app != app and parse_key(self._keyring, record.app, text) is not None:
                raise RelayError(40102, "Incompatible credentials: the connection belongs to another app")
            return BAD_KEY
        if record is None or record.app != app or not self._holds(key, record, now_ms):
            return EXPIRED
        if record.client_id not in (client_id, "*"):
            raise RelayError(40102, "Incompatible credentials: the connection belongs to another clientId")
        return key, record

    def holder(self, key: ConnectionKey, app: str, now_ms: int) -> ConnectionRecord | None:
        """The connection that a key stands for, if it may still be used."""
        record = self.find(key.connection_id)
        return record if record is not None and record.app == app and self._holds(key, record, now_ms) else None

    def _holds(self, key: ConnectionKey, record: ConnectionRecord, now_ms: int) -> bool:
        if record.state is State.CLOSED or not record.oldest <= key.incarnation <= record.incarnation:
            return False
        gone_at = self._gone_at(record, now_ms)
        return gone_at is None or now_ms - gone_at <= self._ttl_ms

    def _gone_at(self, record: ConnectionRecord, at_ms: int) -> int | None:
        """Since when it has had no socket, looked at from `at_ms`; None if it has one."""
        if record.state is not State.LIVE:
            return record.gone_at
        if record.boot in self._edges:
            return None
        lease = self._leases.get(record.boot)
        end = (0 if lease is None else lease.at) + self._lease_ms
        return end if end < at_ms else None

    def waits(self, connection: str, waiting: object, now: float) -> bool:
        """Have `waiting` back from `arrived` or `overdue`, if nothing was read of the connection so far. Not when too many wait already."""
        if self.find(connection) is not None or self._early_jobs >= self._limits.session_waiters:
            return False
        self._early_jobs += 1
        self._early.setdefault(connection, []).append((now + _FIRST_WORD_S, waiting))
        return True

    def arrived(self, connection: str) -> list[object]:
        """Who waited for a first word of the connection."""
        found = [waiting for _, waiting in self._early.pop(connection, ())]
        self._early_jobs -= len(found)
        return found

    def overdue(self, now: float) -> list[object]:
        """Who has waited long enough."""
        return [found for name in [name for name, those in self._early.items() if those[0][0] <= now] for found in self.arrived(name)]

    def claim(self, claim: Claim, key: ConnectionKey, record: ConnectionRecord) -> None:
        """Write the next incarnation for a claim that `judge` has let through; `settled` has it back when that has been read."""
        claim.tries += 1
        claim.record = taken = ConnectionRecord(
            core=self._core,
            edge=claim.edge,
            boot=claim.boot,
            app=claim.app,
            key_name=claim.key_name,
            client_id=claim.client_id,
            incarnation=record.incarnation + 1,
            oldest=key.incarnation,
            claim=self._random(8).hex(),
            remain_present_ms=claim.remain_present_ms,
            opened_at=record.opened_at,
        )
        ticket = self._write(claim.connection, taken)
        self._claims[ticket] = claim

    def settled(self, ticket: int, ok: bool) -> Claim | None:
        """The claim whose record was written, or failed to be."""
        connection, record = self._writing.pop(ticket, ("", None))
        claim = self._claims.pop(ticket, None)
        if claim is not None or record is None:
            return claim
        if not ok:
            self._counters["sessions.write_failed"] += 1
            if len(self._again) < self._limits.session_writes or connection in self._again:
                self._again[connection] = record
            else:
                self._unread.pop(connection, None)  # nobody will ever read of it
        return None

    def has(self, claim: Claim) -> bool:
        """Whether the connection is this claim's, now that its record has been read."""
        record, known = claim.record, self._table.get(claim.connection)
        return record is not None and known is not None and (known.incarnation, known.claim) == (record.incarnation, record.claim)

    def drop(self, claim: Claim, now_ms: int) -> None:
        """The claim cannot be told its answer, or its record may come too late: whatever becomes of it, nobody is there."""
        if claim.record is not None:
            self._write(claim.connection, msgspec.structs.replace(claim.record, state=State.GONE, gone_at=now_ms))

    def _write(self, connection: str, record: ConnectionRecord) -> int:
        self._again.pop(connection, None)
        ticket = self._number()
        self._writing[ticket] = (connection, record)
        self._emit(WriteSession(ticket, f"connection:{connection}", _encode(record)))
        return ticket

    # --- the table -------------------------------------------------------------------------------------------------------------------

    def read(self, key: str, value: bytes | None, now: float = 0.0) -> Change | None:
        """One record, in log order. What it changed, if anything."""
        kind, _, name = key.partition(":")
        try:
            if kind == "edge":
                self._read_lease(name, value, now)
            elif kind == "connection":
                return self._read_connection(name, None if value is None else _decode(value), now)
        except msgspec.MsgspecError:
            self._counters["sessions.unreadable"] += 1
        return None

    def _read_lease(self, boot: str, value: bytes | None, now: float) -> None:
        if value is None:
            self._leases.pop(boot, None)
            self._heard.pop(boot, None)
            return
        lease = msgspec.json.decode(value, type=EdgeRecord)
        known = self._leases.get(boot)
        if known is None or lease.at > known.at:
            self._leases[boot] = lease
            self._heard[boot] = now
        self._heard_ms = max(self._heard_ms, lease.at)

    def _read_connection(self, name: str, record: ConnectionRecord | None, now: float) -> Change | None:
        self._unread.pop(name, None)
        before = self._table.get(name)
        if record is None:
            if before is None:
                return None
            del self._table[name]
            self._moved(before, None)
            return Change(name, before, None)
        after = join(before, record)
        if record.core == self._core and not after.says_the_same(record):
            self._write(name, msgspec.structs.replace(after, core=self._core))
        if after is before:
            return None
        self._table[name] = after
        self._moved(before, after)
        if after.state is State.LIVE and after.boot not in self._leases:
            # Its lease could not be written in time: it counts from what is known of the time.
            self._leases[after.boot] = EdgeRecord(core=after.core, edge=after.edge, at=self._heard_ms)
            self._heard[after.boot] = now
        if before is None and len(self._table) > self._limits.connections:
            self._counters["sessions.forgotten_early"] += 1
            _, forgotten = self._table.popitem(last=False)
            self._moved(forgotten, None)
        return Change(name, before, after)

    def _moved(self, before: ConnectionRecord | None, after: ConnectionRecord | None) -> None:
        was, now = (record is not None and record.state is State.LIVE for record in (before, after))
        if was != now:
            self._lives((after or before).app, 1 if now else -1)  # type: ignore[union-attr]

    # --- time ------------------------------------------------------------------------------------------------------------------------

    def sweep(self, now: float, now_ms: int) -> None:
        """Once a second or so."""
        for boot, edge in self._edges.items():
            self._renew(boot, edge, now_ms)
        while self._second and self._second[0][0] <= now:
            _, connection, record = self._second.popleft()
            if join(known := self._table.get(connection), record) is not known:
                self._write(connection, record)
        for connection in list(self._again)[:_WRITTEN_AGAIN_PER_SWEEP]:
            record = self._again.pop(connection)
            if join(known := self._table.get(connection), record) is not known:
                self._write(connection, record)
        self._forget(now)

    def _forget(self, now: float) -> None:
        """Tombstones for what is long gone, a piece of the table at a time: by the core whose record it is, else later by any."""
        after_ms = self._ttl_ms + int(_FORGET_AFTER_S * 1000)
        for _ in range(min(_SCANNED_PER_SWEEP, len(self._table))):
            name = next(self._scan, None)
            if name is None:
                self._forget_leases(3 * after_ms, now)
                self._scan = iter(list(self._table))
                return
            record = self._table.get(name)
            gone_at = None if record is None else self._gone_at(record, self._heard_ms)
            if record is not None and gone_at is not None:
                over = self._heard_ms - gone_at - after_ms
                if over > (0 if record.core == self._core else after_ms):
                    self._emit(WriteSession(self._number(), f"connection:{name}", None))
        if not self._table:
            self._forget_leases(3 * after_ms, now)

    def _forget_leases(self, after_ms: int, now: float) -> None:
        for boot in [boot for boot, at in self._heard.items() if now - at > after_ms / 1000 and boot not in self._leases]:
            del self._heard[boot]
        for boot in [boot for boot, lease in self._leases.items() if self._heard_ms - lease.at > after_ms and boot not in self._edges]:
            self._emit(WriteSession(self._number(), f"edge:{boot}", None))


_encode = msgspec.json.Encoder().encode
_decoder = msgspec.json.Decoder(ConnectionRecord)


def _decode(value: bytes) -> ConnectionRecord:
    """Names that many connections share are kept once."""
    record = _decoder.decode(value)
    return msgspec.structs.replace(
        record,
        core=sys.intern(record.core),
        edge=sys.intern(record.edge),
        boot=sys.intern(record.boot),
        app=sys.intern(record.app),
        key_name=sys.intern(record.key_name),
    )
